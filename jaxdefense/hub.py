"""Models of the Hugging Face hub, by their ids: fetched, kept and found again as its client does.

An id is `OWNER/NAME`; `/FOLDER` and then `@REVISION` may follow. open_clip's `hf-hub:OWNER/NAME`
and `ARCH/TAG` are read in OpenCLIP's layout where a repository has both. What exists here is never
an id. Cache, tokens, endpoint and offline mode are those of huggingface_hub.
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxdefense.errors import InputError, RunError
from jaxdefense.log import Progress

logger = logging.getLogger(__name__)

PIPELINE = "model_index.json"  # of diffusers: names the parts of a pipeline, each in its folder
_SCHEME = "hf-hub:"
_ID = re.compile(
    rf"(?P<scheme>{_SCHEME})?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?P<folder>(?:/\w[\w.-]*)*)"
    r"(?:@(?P<revision>\w[\w./-]*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Texts beside the weights. Code is not among them: it would never be run.
_TEXTS = {".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ""}


class Id(NamedTuple):
    """The id of a model on the hub.

    Fields:
        repo: OWNER/NAME.
        folder: of the model in the repository; "" for its root.
        revision: branch, tag or commit; "" for the default branch.
        openclip: whether it is open_clip's kind of id.
    """

    repo: str
    folder: str = ""
    revision: str = ""
    openclip: bool = False

    def __str__(self) -> str:
        """Write it as a user would."""
        folder, revision = (
            f"{x}{y}" if y else "" for x, y in (("/", self.folder), ("@", self.revision))
        )
        return f"{_SCHEME * self.openclip}{self.repo}{folder}{revision}"


class Found(NamedTuple):
    """A model directory on this machine.

    Fields:
        path: the directory.
        layout: name of the layout to read, where it may hold several; "" for any.
    """

    path: Path
    layout: str = ""


def is_pinned(given: str) -> bool:
    """Whether a setting is an id with a commit, as `pinned` writes it, and so no path."""
    found = _ID.fullmatch(given)
    return found is not None and _COMMIT.fullmatch(found["revision"] or "") is not None


def find_id(given: str) -> Id | None:
    """Read an id; None for what exists here, and for what cannot be an id.

    Raises:
        InputError: it is OpenCLIP's, of an unknown tag; or it is marked as open_clip's, and the hub
            takes no such name.
    """
    if os.path.lexists(given) or not (found := _ID.fullmatch(given)):
        return None
    folder, revision = found["folder"].removeprefix("/"), found["revision"] or ""
    openclip = found["scheme"] is not None
    if not openclip and not folder and (repo := _of_openclip(found["repo"])):
        return Id(repo, "", revision, True)
    if why := _refused(found["repo"]):
        if openclip:
            raise InputError(f"`{given}` is no directory here, and cannot be an id: {why}")
        return None
    return Id(found["repo"], folder, revision, openclip)


def _refused(repo: str) -> str:
    """Say why the hub takes no such OWNER/NAME; "" if it does."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return str(error)
    return ""


def _of_openclip(given: str) -> str:
    """Find the repository of OpenCLIP's ARCH/TAG; "" if there is no such ARCH."""
    text = resources.files("jaxdefense.convert").joinpath("openclip_ids.tsv").read_text("utf-8")
    known = dict(line.split("\t") for line in text.splitlines())
    arch, _, tag = given.partition("/")
    arch = arch.removesuffix("-quickgelu")  # the repository's own config has the activation
    if repo := known.get(f"{arch}/{tag}"):
        return repo
    if tags := [name.partition("/")[2] for name in known if name.startswith(f"{arch}/")]:
        raise InputError(
            f"OpenCLIP has no {arch} by the tag `{tag}`; give one of {', '.join(tags)}."
        )
    return ""


def pinned(given: str) -> str:
    """Give an id with the commit that it means now, and have the model fetched.

    Args:
        given: a path, or an id.

    Returns:
        the id with its commit; a path as it is.

    Raises:
        InputError, RunError: see `local`.
    """
    if (model := find_id(given)) is None:
        return given
    commit = _snapshot(model).name
    if model.revision != commit:
        logger.info(f"`{given}` is commit {commit[:12]} of {model.repo}")
    return str(model._replace(revision=commit))


def local(given: str | Path, layout: str = "") -> Found:
    """Find a model directory on this machine, fetching it if it is an id.

    Args:
        given: a path, or an id.
        layout: name of the only layout to fetch; "" for the one that the id stands for.

    Raises:
        InputError: the hub has no such model or revision, does not show it to this user, or may not
            be asked; or the repository holds no model that can be read.
        RunError: the hub does not answer.
    """
    if (model := find_id(str(given))) is None:
        return Found(Path(given))
    path = _snapshot(model, layout)
    return Found(path / model.folder, _choose(_names(path), model, layout, path).layout)


@functools.lru_cache(maxsize=64)  # within a process, an id means one commit
def _snapshot(model: Id, layout: str = "") -> Path:
    """Fetch a model's files, or find them in the cache; gives the folder, named by the commit."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if _COMMIT.fullmatch(model.revision) and (kept := _cached(model, layout)) and not kept.lacks:
        return kept.path
    where, fetch = constants.ENDPOINT, f"fetch it where that works: `{_command(model)}`"
    here = f"`{model}` is no directory here"
    try:
        info = huggingface_hub.HfApi().model_info(model.repo, revision=model.revision or None)
        _warn_of_guess(model)
        names = [x.rfilename for x in info.siblings or ()]
        this = model._replace(revision=info.sha or model.revision)
        known = _cached(this, layout)
        files = _choose_clip(names, this, layout)
        with contextlib.nullcontext() if known else Progress(f"fetching {model}"):
            return Path(_download(model, allow_patterns=files))
    except errors.GatedRepoError as error:
        raise InputError(
            f"`{model.repo}` is gated, and this user may not read it: accept its terms at "
            f"{where}/{model.repo}, then log in by `hf auth login`, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"`{model.repo}` has no revision `{model.revision}`; give a branch, a tag or a whole "
            "commit of it."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{here}, and {where} has no model `{model.repo}` that this user may read; correct "
            "it, or, if it is private, log in by `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        if kept := _cached(model, layout):
            return _without_hub(model, kept)
        raise InputError(
            f"{here}, nor is it whole in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
            f"ask {where}; {fetch}."
        ) from error
    except _no_answer() as error:
        if kept := _cached(model, layout):
            logger.warning(f"{where} does not give it; `{model}` is the commit kept last")
            return _without_hub(model, kept)
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{here}, nor is it whole in {constants.HF_HUB_CACHE}, and {where} does not give it "
            f"({why}); {fetch}."
        ) from error


def _warn_of_guess(model: Id) -> None:
    """Say that a path which does not exist is taken as an id, unless only an id is written so."""
    from huggingface_hub import constants

    from jaxdefense.files import say_once  # brings NumPy, which help does without

    if not (model.openclip or _COMMIT.fullmatch(model.revision)):
        say_once(
            f"`{model}` is no directory here, and is taken as the id of a model of "
            f"{constants.ENDPOINT}; correct it if it should be a path"
        )


def _without_hub(model: Id, kept: "_Kept") -> Path:
    """Give what the cache has of a model; say what it may lack."""
    _warn_of_guess(model)
    if kept.lacks:
        logger.warning(
            f"what the cache has of `{model}` is without {kept.lacks}; if the model has that, "
            f"fetch it where that works: `{_command(model)}`"
        )
    return kept.path


def _no_answer() -> tuple[type[Exception], ...]:
    """List what the client raises if a hub answers wrongly, late, or breaks off."""
    from huggingface_hub import errors

    # The first is that of httpx, under whichever name the client has it.
    return (errors.HTTPError, errors.LocalEntryNotFoundError)  # pyright: ignore


def _download(model: Id, **how: object) -> str:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()  # ours says what is done, in a log too
    try:
        return huggingface_hub.snapshot_download(
            model.repo,
            revision=model.revision or None,
            **how,  # pyright: ignore
        )
    finally:
        enable_progress_bars()


class _Kept(NamedTuple):
    """A model in the cache, with all of its weights.

    Fields:
        path: folder of the commit.
        lacks: what most models have beside their weights, and this one does not; "" if nothing.
    """

    path: Path
    lacks: str


def _cached(model: Id, layout: str) -> _Kept | None:
    """Find a model that was fetched before, if all of its weights were.

    Other programs fetch single files, so the cache may hold a part of a model.
    """
    from jaxdefense.convert.directory import LAYOUTS, weight_names

    try:
        path = Path(_download(model, local_files_only=True, allow_patterns=[]))
        chosen = _choose(_names(path), model, layout, path)
        weight_names(path / chosen.folder, LAYOUTS[chosen.layout])
        path = Path(_download(model, local_files_only=True, allow_patterns=chosen.files))
    except (FileNotFoundError, InputError):  # of the client, and of what is not there
        return None
    return _Kept(path, _lacks(path, chosen))


def _lacks(path: Path, chosen: "_Chosen") -> str:
    """Say what a model in the cache may lack, going by its config; see `_Kept`."""
    from jaxdefense.convert.directory import HF, LAYOUTS
    from jaxdefense.convert.preprocess import PREPROCESSOR, PROCESSOR
    from jaxdefense.files import read_json

    form = LAYOUTS[chosen.layout]
    try:
        cfg = form.read_config(read_json(path / chosen.folder / form.config))
    except InputError:  # whoever reads the model reports it
        return ""
    there = {PurePosixPath(file).name for file in chosen.files}
    if cfg.text and "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        return "a tokenizer"
    if cfg.vision and form is HF and not {PREPROCESSOR, PROCESSOR} & there:
        return f"a {PREPROCESSOR}"
    return ""


def _command(model: Id) -> str:
    """Write the command that fetches a model."""
    revision = f" --revision {model.revision}" if model.revision else ""
    only = ""
    if model.folder:
        parts = (PIPELINE, f"{model.folder}/*", "tokenizer*")
        only = "".join(f" --include '{part}'" for part in parts)
    return f"hf download {model.repo}{revision}{only}"


def _names(path: Path) -> list[str]:
    return [x.relative_to(path).as_posix() for x in path.rglob("*") if x.is_file()]


class _Chosen(NamedTuple):
    """The files of a repository that make one copy of a model.

    Fields:
        layout: name of its layout.
        folder: that it is in; "" for the root.
        files: with their folders.
    """

    layout: str
    folder: str
    files: list[str]


def _choose_clip(names: Collection[str], model: Id, layout: str) -> list[str]:
    """Choose a model's files, and see that it is a CLIP before its weights are fetched.

    Raises:
        InputError: it holds no model that is read.
    """
    from jaxdefense.convert.directory import LAYOUTS
    from jaxdefense.files import read_json

    root = Path()
    if PIPELINE in names:
        root = Path(_download(model, allow_patterns=[PIPELINE]))
    chosen = _choose(names, model, layout, root)
    form = LAYOUTS[chosen.layout]
    config = str(PurePosixPath(chosen.folder, form.config))
    root = Path(_download(model, allow_patterns=[config]))
    try:
        form.read_config(read_json(root / config))
    except InputError as error:
        raise InputError(f"`{model}`, {config}: {error}") from error
    return chosen.files


def _choose(names: Collection[str], model: Id, layout: str, root: Path) -> _Chosen:
    """Choose the files of a repository that make one copy of a model.

    Args:
        names: of all its files.
        model: its id.
        layout: see `local`.
        root: where what a pipeline says of its parts was fetched, if it is one.

    Raises:
        InputError: it holds no model in a layout that is read.
    """
    from jaxdefense.convert.directory import HF, LAYOUTS, OPENCLIP
    from jaxdefense.convert.pipeline import encoder_of
    from jaxdefense.convert.weights import find_weights

    folder = model.folder
    if not folder and PIPELINE in names:
        folder = encoder_of(root, str(model)).name
    inside = set(_inside(names, folder))
    forms = [LAYOUTS[layout]] if layout else [OPENCLIP, HF] if model.openclip else [HF, OPENCLIP]
    for form in forms:
        weights = find_weights(inside, form.weights, form.pickle)
        if weights and form.config in inside:
            break
    else:
        wanted = " or ".join(
            f"{form.config} with {form.weights} or {form.pickle}" for form in forms
        )
        where = f"`{folder}` of `{model.repo}`" if folder else f"`{model.repo}`"
        raise InputError(f"{where} has no {wanted}; give a model that has.")
    files = [*weights.files, *([weights.index] if weights.index else []), *_texts(inside)]
    files = [str(PurePosixPath(folder, name)) for name in files]
    if PIPELINE in names and folder:
        beside = folder.replace("text_encoder", "tokenizer")
        files += [PIPELINE, *(f"{beside}/{name}" for name in _texts(_inside(names, beside)))]
    return _Chosen(form.name, folder, files)


def _inside(names: Collection[str], folder: str) -> Iterator[str]:
    """Give the files of a folder, without those of folders in it."""
    for name in map(PurePosixPath, names):
        if name.parent == PurePosixPath(folder):
            yield name.name


def _texts(names: Iterable[str]) -> list[str]:
    """Choose texts: config, tokenizer, processor, licence, card; no index of weights."""
    kept = (x for x in names if Path(x).suffix in _TEXTS and not x.startswith("."))
    return sorted(x for x in kept if ".index." not in x)
