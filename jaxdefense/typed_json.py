"""JSON values from dataclasses and TypedDicts, and back; what is of another type is refused."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Literal, TypeAlias

from jaxdefense.errors import InputError

Json: TypeAlias = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def plain(value: object) -> Json:
    """Write a value as JSON holds it; of a dataclass, the fields that have not their default.

    A field's name may end in `_`, where the key is a word of Python.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name.rstrip("_"): plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != _default(field)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    assert value is None or isinstance(value, bool | int | float | str), value
    return value


def _default(field: dataclasses.Field[object]) -> object:
    """Give a field's default, MISSING if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _typed(hint: object, value: Json, where: str, key: str) -> object:
    """Read a JSON value as what a type says.

    Args:
        hint: the type.
        value: of JSON.
        where: what an error begins with.
        key: of the value, for an error.

    Raises:
        InputError: it is something else.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _typed(args[0], value, where, key)
    if origin is Literal and value in args:
        return value
    if origin is dict and isinstance(value, dict):
        return {name: _typed(args[1], x, where, f"{key}.{name}") for name, x in value.items()}
    if origin is list and isinstance(value, list):
        return [_typed(args[0], x, where, f"{key}[{i}]") for i, x in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_typed(args[i], x, where, f"{key}[{i}]") for i, x in enumerate(value))
    if isinstance(hint, type) and isinstance(value, dict):
        if dataclasses.is_dataclass(hint):
            return hint(**fields_of(hint, value, where, key))
        if typing.is_typeddict(hint):
            return fields_of(hint, value, where, key)
    if hint is float and isinstance(value, float | int) and not isinstance(value, bool):
        if math.isfinite(value):
            return value
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise InputError(f"{where}: `{key}` (={_short(value)}) is not what this kind of result holds.")


def fields_of(kind: type, found: Mapping[str, Json], where: str, at: str = "") -> dict[str, object]:
    """Read the fields of a dataclass or of a TypedDict; those that are unknown are passed over.

    Args:
        kind: the class.
        found: what JSON holds.
        where: what an error begins with.
        at: key of it all, for an error.

    Raises:
        InputError: one is missing, or something else than its type says.
    """
    hints, out = typing.get_type_hints(kind), dict[str, object]()
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        needed = {field.name: _default(field) is dataclasses.MISSING for field in fields}
    else:
        needed = {name: name in getattr(kind, "__required_keys__", ()) for name in hints}
    for name, must in needed.items():
        key = name.rstrip("_")
        where_key = f"{at}.{key}" if at else key
        if key in found:
            out[name] = _typed(hints[name], found[key], where, where_key)
        elif must:
            raise InputError(f"{where}: `{where_key}` is missing; is it a whole result?")
    return out


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]} ..."
