"""How settings are declared, given and compared.

Each setting is one field of a frozen dataclass in `config`, with its type, choices, default, one
sentence of help, and whether it changes the result. The command line, its help, the errors, the
reference page and the identity of a run derive from that.

Flags win over `--set`, which wins over the config file. All three become flags for one parser. A
config file is Python with `get_config()` that returns an `ml_collections.ConfigDict`; it holds what
differs from the defaults. The rest of the package never sees a ConfigDict.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import itertools
import math
import os
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from jaxdefense.buckets.places import address, is_address
from jaxdefense.errors import InputError
from jaxdefense.hub import is_pinned
from jaxdefense.paths import check_given

T = TypeVar("T")

_RESULT, _RECORD = "result", "record"  # keys of a field's metadata
_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1:]
_PLACE = "place"  # marks a string that is a path
_MODEL = "model"  # marks one that may be the id of a model instead
_HOW = "how"  # marks a setting that must be given, and does not change the result
Kind = Literal["input", "changed", "run", "new", "own"]  # of a text: what a path in it is
_KINDS = _CHANGED, _RUN, _NEW, _OWN = typing.get_args(Kind)[1:]  # mark a string
PATH = "path"  # type of a setting, in the reference
_ADDRESSES = {"log.mlflow"}  # settings that are addresses, where others are paths
_RENAMED = {"identities": "names"}  # last part of a former key -> of today's


def how(default: T) -> T:
    """Declare a setting that says how a run is computed, and does not change its result."""
    return dataclasses.field(default=default, metadata={_RESULT: False})


def told(default: T) -> T:
    """Declare a setting that says how a result is told: nothing of it is recorded."""
    return dataclasses.field(default=default, metadata={_RESULT: False, _RECORD: False})


def short(name: str) -> Any:
    """Give a setting a second, short flag; for `Annotated`."""
    return tyro.conf.arg(aliases=(f"--{name}",))


def _commas(kind: Callable[[str], Any]) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda given: tuple(
            kind(part.strip()) for part in given[0].split(",") if part.strip()
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


# A path of a user; two spellings of one path are the same.
Place = Annotated[str, _PLACE]
# The same of what must be given: where results go, or inputs whose contents are compared.
Anywhere = Annotated[str, _PLACE, _HOW]
# The same of models; an id counts with the commit that it means, see `hub`.
Model = Annotated[Place, _MODEL]
AnyModel = Annotated[Anywhere, _MODEL]
# A directory of results, that a command may resume; and a file or model that it makes at its end.
RunPlace = Annotated[str, _PLACE, _HOW, _RUN]
NewPlace = Annotated[str, _PLACE, _HOW, _NEW]
# What a command reads, and adds something to.
ChangedPlace = Annotated[str, _PLACE, _CHANGED]
# What stays on this machine, as a cache: never an address.
OwnPlace = Annotated[str, _PLACE, _OWN]
ChangedModel = Annotated[ChangedPlace, _MODEL]
# Several values, with commas between.
Names = Annotated[tuple[str, ...], _commas(str)]
Integers = Annotated[tuple[int, ...], _commas(int)]
Floats = Annotated[tuple[float, ...], _commas(float)]


# Giving


def parse(
    kind: type[T],
    args: Sequence[str] = (),
    prog: str = "jaxdefense",
    about: str = "",
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    below: Callable[[type, Sequence[str]], Mapping[str, Any]] = lambda kind, flags: {},
) -> T:
    """Fill a dataclass of settings.

    Args:
        kind: of dataclass.
        args: flags; `--config FILE` and `--set KEY=VALUE` among them.
        prog: name of the command, for help and errors.
        about: what it does, for help.
        presets: nested settings by name; those of `--preset NAME` lie below all others.
        below: takes the dataclass and all flags; gives settings, by their full names, that lie
            below even these.

    Raises:
        InputError: a setting is unknown, missing, of another type, or out of range.
        SystemExit: help was asked for, and printed.
    """
    own = ("--config", "--set", *["--preset"] * bool(presets))
    given, rest = _split(args, own)
    preset, file = (given[name][-1] if given[name] else "" for name in ("--preset", "--config"))
    if preset and preset not in (presets or {}):
        raise InputError(f"`--preset` (={preset}) must be one of {', '.join(presets or {})}.")
    trees = [(presets or {}).get(preset, {}), load_config_file(file) if file else {}]
    for tree in trees:
        _check_sections(kind, tree)
    flags = [*itertools.chain(*map(as_flags, trees)), *map(_assignment, given["--set"]), *rest]
    _check_renamed(flags)
    _check_values(flags)
    flags = [*as_flags(below(kind, flags)), *flags]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(
                kind, prog=prog, description=about or None, args=_switches(kind, flags)
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        error = ended.__context__
        while error and not isinstance(error, InputError):
            error = error.__context__
        wrong = _whole_names(str(error), flags) if error else _one_line(said.getvalue(), prog)
        raise InputError(wrong) from None
    _check(found)
    return found


def _split(args: Sequence[str], own: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Separate the flags that are no settings; return their values, and all other flags."""
    given, rest = {"--preset": [], "--config": [], "--set": []}, list[str]()
    left = iter(args)
    for arg in left:
        name, equals, value = arg.partition("=")
        if name not in own:
            rest.append(arg)
            continue
        if not equals and (value := next(left, "")) == "":
            raise InputError(f"`{name}` takes a value.")
        given[name].append(value)
    for path in given["--config"]:
        check_given(path, "config")
    return given, rest


def _assignment(text: str) -> str:
    """Write `key=value` as a flag."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"`--set {text}` must have the form key=value.")
    (flag,) = as_flags({key: _literal(value)})
    return flag


def _literal(text: str) -> Any:
    """Read a list or a text written as Python; return anything else unchanged."""
    if text[:1] not in tuple("([\"'"):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_config_file(path: str) -> dict[str, Any]:
    """Run a config file's `get_config()`; return its values as nested dicts.

    Args:
        path: of the file; or, without `.py`, the name of one that comes with the package.

    Raises:
        InputError: there is no such file, it fails, or it returns no ConfigDict.
    """
    import ml_collections

    shipped = _shipped_configs()
    file = path if path.endswith(".py") else shipped.get(path, "")
    spec = importlib.util.spec_from_file_location("jaxdefense_config", file)
    if spec is None or spec.loader is None or not os.path.isfile(file):
        raise InputError(
            f"config file `{path}` does not exist, or is not a .py file; by name there are "
            f"{', '.join(shipped)}."
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise InputError(f"config file `{path}`: {type(error).__name__}: {error}.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"config file `{path}`: get_config() must return a ConfigDict.")
    return config.to_dict()


def _shipped_configs() -> dict[str, str]:
    """Find the config files that come with the package, by name, as `paper/text`."""
    package = Path(__file__).parent
    installed = package / "configs"  # where a wheel has them
    folder = installed if installed.is_dir() else package.parent / "configs"
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(folder).with_suffix("").as_posix(): str(file) for file in files}


def as_flags(tree: Mapping[str, Any], at: str = "") -> list[str]:
    """Write nested settings as flags.

    Raises:
        InputError: a value is None, or something else that is no setting.
    """
    flags = list[str]()
    for name, value in tree.items():
        key = at + name
        if isinstance(value, Mapping):
            flags += as_flags(value, key + ".")
            continue
        items = value if isinstance(value, list | tuple) else [value]
        if any(not isinstance(x, str | int | float | os.PathLike) for x in items):
            raise InputError(f"`{key}` (={value!r}) must be a number, a text or a list of these.")
        flags.append(f"--{key}={','.join(map(str, items))}")
    return flags


def _whole_names(said: str, flags: Sequence[str]) -> str:
    """Name settings as they were given: a section does not know its own name."""
    given = [flag.partition("=")[0][2:].replace("-", "_") for flag in flags if flag[:2] == "--"]

    def whole(found: re.Match[str]) -> str:
        keys = {key for key in given if key.endswith(f".{found[1]}")}
        return f"`{keys.pop()}`" if len(keys) == 1 and found[1] not in given else found[0]

    return re.sub(r"`([\w.]+)`", whole, said)


def _one_line(said: str, prog: str) -> str:
    """Turn the parser's box into one line: what is wrong, and where help is."""
    drawn = "╭" in said  # else in ASCII, with the title in the first part
    lines = [line.strip("│ ") for line in said.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split("^[─-]{20,}$", "\n".join(lines), flags=re.MULTILINE)
    parts = [part.strip() for part in parts if part.strip()]
    what = list[str]()
    for part in parts if drawn else parts[1:]:
        first, *rest = part.split("\n")
        if first.startswith("Missing from"):
            what.append(f"missing: {_flags_in(rest)}")
        elif first.startswith("Perhaps you meant"):
            what.append(f"perhaps {_flags_in(rest)} is meant")
        elif first.startswith("Unrecognized"):
            what.append(" ".join(["unknown:", first.partition(": ")[2], *rest]))
        elif not first.startswith(("Argument helptext", "For full helptext")):
            what.append(" ".join([first, *rest]))
    return f"{'; '.join(what).rstrip('.')}; see `{prog} --help`."


def _flags_in(lines: Sequence[str]) -> str:
    return ", ".join(
        line.split()[0].rstrip(",")
        for line in lines
        if line.startswith("--") or line.split(" ")[0].isupper()  # a positional: SRC, DST
    )


def _switches(kind: type, flags: Sequence[str]) -> list[str]:
    """Write booleans as switches: `--key`, `--no-key`.

    Raises:
        InputError: it has another value.
    """
    out = list[str]()
    for flag in flags:
        name, equals, value = flag.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not equals or not _is_switch(kind, key):
            out.append(flag)
            continue
        if value not in ("True", "False"):
            raise InputError(f"`{key}` (={value}) must be True or False.")
        *section, last = key.split(".")
        out.append(f"--{'.'.join([*section, 'no_' * (value == 'False') + last])}")
    return out


def _is_switch(kind: Any, key: str) -> bool:
    """Whether a setting is boolean, by its type alone, so that no help is read."""
    for name in key.split("."):
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    return kind is bool


def _check_sections(kind: type, tree: Mapping[str, Any], at: str = "") -> None:
    """Raise InputError if a section, even an empty one, has an unknown name."""
    hints = typing.get_type_hints(kind)
    for name, value in tree.items():
        if not isinstance(value, Mapping):
            continue
        if not dataclasses.is_dataclass(section := hints.get(name)):
            known = [key for key, hint in hints.items() if dataclasses.is_dataclass(hint)]
            raise InputError(f"unknown section `{at}{name}`; there are {', '.join(known)}.")
        _check_sections(typing.cast(type, section), value, f"{at}{name}.")


def _check_renamed(flags: Sequence[str]) -> None:
    """Raise InputError if a setting goes by a former name."""
    for flag in flags:
        key = flag.partition("=")[0].removeprefix("--")
        *section, last = key.split(".")
        if flag.startswith("--") and (new := _RENAMED.get(last)):
            raise InputError(f"`{key}` is called `{'.'.join([*section, new])}` now; rename it.")


def _check_values(flags: Sequence[str]) -> None:
    """Raise InputError if a value is an address, or a path that cannot be examined."""
    name = ""
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not flag.startswith("--"):
            value, equals = flag, True
        else:
            name = key.removeprefix("--")
        if equals and name not in _ADDRESSES:
            check_given(value, name or value)


def _check(config: Any, at: str = "") -> None:
    """Raise InputError if a number is not finite, or an address is wrong."""
    if not at:
        change_texts(config, _check_address)
    for field in dataclasses.fields(config):
        key, value = at + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check(value, key + ".")
        for x in value if isinstance(value, tuple) else (value,):
            if isinstance(x, float) and not math.isfinite(x):
                raise InputError(f"`{key}` (={value}) must be finite.")


def _check_address(name: str, text: str, kind: Kind) -> str:
    if is_address(text):
        given = address(text, name)
        if kind == _OWN:
            raise InputError(f"`{name}` (={text}) must be a local path, as it stays here.")
        if kind in (_RUN, _NEW) and given.count("/") < 3:
            raise InputError(f"`{name}` (={text}) is a bucket; give a name in it.")
    return text


def change_texts(config: T, change: Callable[[str, str, Kind], str]) -> T:
    """Change the texts in settings, also those that stand in a tuple.

    Args:
        config: dataclass of settings.
        change: takes the full name of a setting, the text, and what it is if it is a path.
    """

    def changed(name: str, text: str, marks: Sequence[Any]) -> str:
        return change(name, text, next((x for x in _KINDS if x in marks), "input"))

    return _with_texts(config, changed)


def with_models(config: T, change: Callable[[str], str]) -> T:
    """Return settings with each model that they name changed."""
    return _with_texts(
        config, lambda name, text, marks: change(text) if text and _MODEL in marks else text
    )


def _with_texts(config: T, change: Callable[[str, str, Sequence[Any]], str], at: str = "") -> T:
    """Change texts; `change` takes the full name, the text, and how its type is marked."""
    hints, out = typing.get_type_hints(type(config), include_extras=True), {}
    for field in dataclasses.fields(typing.cast(Any, config)):
        key, value = at + field.name, getattr(config, field.name)
        marks = getattr(hints[field.name], "__metadata__", ())
        if dataclasses.is_dataclass(value):
            new = _with_texts(value, change, key + ".")
        elif isinstance(value, tuple):
            new = tuple(change(key, x, marks) if isinstance(x, str) else x for x in value)
        else:
            new = change(key, value, marks) if isinstance(value, str) else value
        if new != value:
            out[field.name] = new
    return dataclasses.replace(typing.cast(Any, config), **out) if out else config


# Checking


def check_positive(**values: float) -> None:
    """Raise InputError if a setting is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise InputError(f"`{name}` (={value}) must be above 0.")


def check_not_negative(**values: float) -> None:
    """Raise InputError if a setting is below 0."""
    for name, value in values.items():
        if value < 0:
            raise InputError(f"`{name}` (={value}) must be at least 0.")


def check_each_of(name: str, values: Sequence[str], choices: Sequence[str], also: str = "") -> None:
    """Raise InputError if a setting names something unknown, or one thing twice."""
    for value in values:
        if value not in choices:
            raise InputError(f"`{name}` (={value!r}) must be of {', '.join(choices)}{also}.")
    if len(set(values)) < len(values):
        raise InputError(f"`{name}` (={', '.join(values)}) names one twice; keep one.")


# Comparing


def to_dict(config: Any) -> dict[str, Any]:
    """Write settings as nested dicts of JSON values, without those that are not recorded."""
    out = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if not field.metadata.get(_RECORD, True):
            del out[field.name]
    return out


def difference(config: Any, default: Any = None) -> dict[str, Any]:
    """Write the settings that differ from the defaults as nested dicts."""
    default, out = default or type(config)(), {}
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if value != usual:
            is_section = dataclasses.is_dataclass(value)
            out[field.name] = difference(value, usual) if is_section else value
    return out


def chosen(config: Any) -> dict[str, str]:
    """List the settings that change a result and differ from the defaults, as flags write them.

    Paths are left out.
    """
    out = dict[str, str]()
    for setting in settings_of(type(config)):
        value: Any = config
        for name in setting.key.split("."):
            value = getattr(value, name)
        if setting.result and setting.type != PATH and (text := as_text(value)) != setting.default:
            out[setting.key] = text
    return out


def identity(kind: type, tree: Any) -> Any:
    """Return the settings that change a run's result, in one spelling.

    Args:
        kind: dataclass of the settings.
        tree: the settings as nested dicts; keys that are no field stay unchanged.
    """
    if not isinstance(tree, Mapping):
        return tree
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints, out = typing.get_type_hints(kind, include_extras=True), {}
    for name, value in tree.items():
        if name in fields:
            extras = getattr(hints[name], "__metadata__", ())
            if _HOW in extras or not fields[name].metadata.get(_RESULT, True):
                continue
            if dataclasses.is_dataclass(hints[name]):
                value = identity(hints[name], value)
                if value == {}:
                    continue
            elif _PLACE in extras and value and not (is_pinned(str(value)) or is_address(value)):
                value = os.path.abspath(str(value))
        out[name] = value
    return out


# The reference page


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a command.

    Fields:
        key: its full name.
        flags: of the command line.
        type: or its choices.
        default: as a flag writes it; None if it must be given.
        help: one sentence.
        result: whether it changes the result.
    """

    key: str
    flags: tuple[str, ...]
    type: str
    default: str | None
    help: str
    result: bool


def settings_of(kind: type, at: str = "", result: bool = True, whole: Any = None) -> list[Setting]:
    """List the settings of a command, required ones first."""
    hints, out = typing.get_type_hints(kind, include_extras=True), list[Setting]()
    for field in dataclasses.fields(kind):
        key, hint = at + field.name, hints[field.name]
        default = field.default if whole is None else getattr(whole, field.name)
        changes = result and field.metadata.get(_RESULT, True)
        bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(bare):
            section = None if default is dataclasses.MISSING else default
            out += settings_of(typing.cast(type, bare), key + ".", changes, section)
            continue
        extras = getattr(hint, "__metadata__", ())
        changes = changes and _HOW not in extras
        also = [alias for extra in extras for alias in getattr(extra, "aliases", None) or ()]
        names = [extra.name for extra in extras if getattr(extra, "name", None)]
        flags, kind_of = (*also, f"--{(names or [key])[0].replace('_', '-')}"), _type(hint, bare)
        if any(extra in _POSITIONAL for extra in extras):
            flags = (field.name.upper(),)
            kind_of = "several" if typing.get_origin(bare) is tuple else kind_of
        shown = None if default is dataclasses.MISSING else as_text(default)
        text = next(x[field.name] for x in map(helps, kind.__mro__) if field.name in x)
        out.append(Setting(key, flags, kind_of, shown, text, changes))
    return sorted(out, key=lambda setting: setting.default is not None)


def as_text(value: Any) -> str:
    """Write a setting as a flag has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _type(hint: Any, bare: Any) -> str:
    if typing.get_origin(bare) is typing.Literal:
        return ", ".join(map(str, typing.get_args(bare)))
    if typing.get_origin(bare) is tuple:
        return f"{typing.get_args(bare)[0].__name__}s, with commas"
    if _PLACE in getattr(hint, "__metadata__", ()):
        return PATH
    return {"str": "text", "int": "integer", "float": "number", "bool": "flag"}[bare.__name__]


@functools.cache
def helps(kind: type) -> dict[str, str]:
    """Read the docstring below each field of a dataclass, without inherited fields."""
    if not dataclasses.is_dataclass(kind):
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        before.target.id: " ".join(ast.literal_eval(after.value).split())
        for before, after in itertools.pairwise(tree.body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
