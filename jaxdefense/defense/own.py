"""A loss given by value from Python, in place of the one that the settings name."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdefense.config import ImageTrainConfig, TextTrainConfig
from jaxdefense.defense.losses import Distance
from jaxdefense.defense.step import Objective, StepConfig, TeacherParams
from jaxdefense.errors import InputError
from jaxdefense.results import read_settings

_WEIGHT = "weight"  # the distance between the weights, which every step adds
_TAKEN = {_WEIGHT, "total", "grad_norm", "lr"}  # metrics of every step
_NOT_COMPARED = "an object that is not compared"
_WHAT = ("objective", "distance")  # keys of a run's resolved values


@dataclasses.dataclass(frozen=True)
class OwnLoss:
    """A loss given by value.

    Fields:
        objective: the loss; or a function that makes it from the one of the settings.
        distance: between embeddings, over the last dim, for the one of the settings.
    """

    objective: Objective | Callable[[Objective], Objective] | None = None
    distance: Distance | None = None

    def __post_init__(self):
        if isinstance(self.objective, Objective) and self.distance:
            raise InputError(
                "`distance` has no effect with a whole `objective`; use it in the objective's "
                "terms, or give a function of the usual objective."
            )

    def made_from(self, usual: Objective) -> Objective:
        """Give the loss to train with.

        Args:
            usual: the loss of the settings, with `distance` in it.

        Raises:
            InputError: it is no objective, or lacks a weight that every step needs.
        """
        own = self.objective
        if own is None:
            return usual
        found = own if isinstance(own, Objective) or not callable(own) else own(usual)
        if not isinstance(found, Objective):
            raise InputError(
                "`objective` must be a `jaxdefense.Objective`, or a function that gives one, not "
                f"{type(found).__name__}."
            )
        if _WEIGHT not in found.weights:
            raise InputError(
                f"`objective`: its weights lack {_WEIGHT!r}, of the distance between the weights; "
                "give 0 for none."
            )
        return found

    def check(self, cfg: StepConfig, teacher: TeacherParams, batch: Any) -> None:
        """Check the loss on a batch, without computing it.

        Raises:
            InputError: a term is no scalar, has no weight or a name that is taken; or the distance
                gives something else than a number a pair.
        """
        if self.distance:
            x = jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)
            found = jax.eval_shape(self.distance, x, x)
            if getattr(found, "shape", None) != x.shape[:-1]:
                raise InputError(
                    "`distance` must give a number for each pair of embeddings, over the last dim: "
                    f"of {list(x.shape)} {list(x.shape[:-1])}, not {_shape(found)}."
                )
        if self.objective is None:
            return
        terms, weights, draw, read = cfg.objective

        def values(teacher: TeacherParams, batch: Any, key: jax.Array) -> Any:
            tower, batch = nnx.merge(cfg.graphdef, *teacher), draw(batch, key)
            return terms(tower, tower, read(tower, batch, 1) if read else batch)

        found = jax.eval_shape(values, teacher, batch, jax.random.key(0))
        if not isinstance(found, Mapping):
            raise InputError(f"`objective`: its terms must be a dict, not {_shape(found)}.")
        for name, value in found.items():
            if getattr(value, "shape", None) != ():
                raise InputError(
                    f"`objective`: its term {name!r} must be a scalar, a weighted sum over the "
                    f"batch, not {_shape(value)}."
                )
            if name in _TAKEN:
                raise InputError(f"`objective`: every step has {name!r}; call its term otherwise.")
            if name not in weights:
                raise InputError(f"`objective`: its term {name!r} has no weight; give it one.")

    def resolved(self) -> dict[str, str]:
        """Describe it for a run's record: what must be the same for the run to resume."""
        given = {"objective": self.objective, "distance": self.distance}
        return {name: describe(value) for name, value in given.items() if value is not None}

    def lines(self, t: TextTrainConfig | ImageTrainConfig, earlier: Path | None) -> list[str]:
        """Say that it is used, what has no effect then, and what is not compared.

        Args:
            t: the training settings of the run.
            earlier: directory of the run of this encoder that the run follows, if any.
        """
        said = [f"own {name}: {what}" for name, what in self.resolved().items()]
        if isinstance(self.objective, Objective):
            said.append("`train.distance`, `train.w_...` and `train.bound` have no effect")
        elif self.distance and t.distance != type(t).distance:
            said.append("`train.distance` has no effect: another distance is given by value")
        if said:
            said.append(
                "of own functions, a run that resumes compares names and sources, but not what "
                "they call or read elsewhere"
            )
        for name, what in self.resolved().items():
            if _NOT_COMPARED in what:
                said.append(
                    f"own {name}: it holds an object, which a run that resumes cannot compare"
                )
        told = read_settings(earlier).get("resolved") if earlier else None
        if before := described(told if isinstance(told, dict) else {}):
            said.append(f"`{earlier}` had an own {' and '.join(before)}, which is not taken over")
        return said


NONE = OwnLoss()


def described(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Give what a run's resolved values say of a loss given by value."""
    return {name: str(resolved[name]) for name in _WHAT if name in resolved}


def describe(value: Any) -> str:
    """Describe a value so that the same one gives the same text in another process.

    Of a function: its name, and the hash of its source, or of its code where Python knows no
    source. Of an array: its kind, and the hash of its bytes. Another object is named alone.
    """
    if isinstance(value, Objective):
        said = f"terms {describe(value.terms)}, weights {dict(value.weights)}"
        said += f", draw {describe(value.draw)}"
        return said + (f", read {describe(value.read)}" if value.read else "")
    if isinstance(value, partial):
        args = [describe(x) for x in value.args]
        args += [f"{name}={describe(x)}" for name, x in sorted(value.keywords.items())]
        return f"{describe(value.func)} with {', '.join(args)}"
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return f"{array.dtype} {list(array.shape)}, sha256 {_hash(array.tobytes())}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {describe(x)}' for name, x in value.items())}}}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype):
        return repr(value)
    if inspect.ismethod(value):
        return f"{_function(value.__func__)} of {describe(value.__self__)}"
    if hasattr(value, "__qualname__"):
        return _function(value)
    kind = describe(type(value))
    if dataclasses.is_dataclass(value):
        fields = {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
        return f"{kind} {describe(fields)}"
    return f"{kind}, {_NOT_COMPARED}"


def _function(value: Any) -> str:
    """Describe a function or a class."""
    name = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    try:
        return f"{name}, source sha256 {_hash(inspect.getsource(value).encode())}"
    except (OSError, TypeError):
        code = getattr(inspect.unwrap(value), "__code__", None)
    if code is None:  # written in C, or a class
        return f"{name}, source not known"
    defaults = describe((value.__defaults__, value.__kwdefaults__))
    return f"{name}, code sha256 {_hash(f'{_code(code)} {defaults}'.encode())}"


def _code(code: CodeType) -> str:
    """Write what a function does: its instructions, and the constants and names in them."""
    constants = [_code(x) if isinstance(x, CodeType) else repr(x) for x in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _shape(value: Any) -> str:
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
