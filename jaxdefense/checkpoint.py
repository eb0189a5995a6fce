"""Checkpoints of a run, by Orbax: each process writes its own part while the run continues.

A checkpoint appears whole or not at all. It holds arrays alone: data and random numbers are
functions of the settings and of the number of steps taken, which is in the state.
"""

import contextlib
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from jaxdefense.distributed import first, on_first, several
from jaxdefense.errors import InputError, RunError

logger = logging.getLogger(__name__)

_LOSS = "loss"


class Unwritten(RunError, OSError):
    """A checkpoint could not be written; the ones before it are whole."""


class Checkpoints:
    """The checkpoints of one run directory, newest last."""

    def __init__(self, directory: Path, keep: int):
        """Open or start them; the `keep` newest stay, and the one of the smallest loss."""
        self._path = directory.absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        best = BestN(n=1, get_metric_fn=lambda metrics: metrics[_LOSS], reverse=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=self._keep), best])
        )
        return ocp.CheckpointManager(self._path, options=options)

    @property
    def latest(self) -> int | None:
        """Number of steps taken in the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, loss: float) -> None:
        """Save a tree of arrays unless this step is saved; returns while it is being written.

        Raises:
            Unwritten: this one, or the one before, could not be written; those before are whole.
        """
        if step == self.latest:
            return
        try:
            self._manager.save(
                step, args=ocp.args.StandardSave(_by_path(state)), metrics={_LOSS: loss}
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def restore_newest(self, abstract: Any, shardings: Any) -> tuple[int, Any | None]:
        """Restore the newest checkpoint that is whole; broken ones are named and deleted.

        Args:
            abstract: tree of shapes and dtypes.
            shardings: the same tree, or a prefix of it, of shardings; of any mesh.

        Returns:
            steps taken, and the tree; 0 and None if there is no checkpoint.

        Raises:
            InputError: there are some, and none can be restored.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        why = ""
        for step in steps:
            # A process that failed alone would leave the others waiting, so the first one tries for
            # all.
            why = on_first(lambda step=step: self._broken(step)) if several() else ""
            if not why:
                try:
                    found = self._restore(step, abstract, shardings)
                except Exception as error:
                    if several():
                        raise
                    why = _reason(error)
                else:
                    self._forget([other for other in steps if other > step])
                    return step, found
            logger.warning(f"checkpoint {step} cannot be restored ({why})")
        if steps:
            raise InputError(
                f"checkpoint {steps[0]} in `{self._path}` is broken, or of another model or "
                f"optimizer ({why}), and so is every one before; give an empty directory."
            )
        return 0, None

    def _restore(self, step: int, abstract: Any, shardings: Any) -> Any:
        leaves, treedef = jax.tree.flatten(abstract)
        where = jax.tree.leaves(
            jax.tree.map(
                lambda sharding, part: jax.tree.map(lambda _: sharding, part), shardings, abstract
            )
        )
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf, sharding in zip(_by_path(abstract), leaves, where, strict=True)
        }
        found = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return jax.tree.unflatten(treedef, [found[name] for name in target])

    def _broken(self, step: int) -> str:
        """Read a checkpoint on this process alone; return why that fails, or ""."""
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="look"
        )
        try:
            with ocp.Checkpointer(
                ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
                multiprocessing_options=alone,
            ) as reader:
                reader.restore(
                    self._path / str(step) / "default",
                    args=ocp.args.PyTreeRestore(
                        restore_args=jax.tree.map(
                            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                            reader.metadata(self._path / str(step) / "default").item_metadata.tree,
                        )
                    ),
                )
        except Exception as error:
            return _reason(error)
        return ""

    def _forget(self, steps: list[int]) -> None:
        """Delete broken checkpoints; the run takes and saves their steps again."""
        if steps:
            self._manager.close()
            if first():
                for step in steps:
                    shutil.rmtree(self._path / str(step), ignore_errors=True)
            on_first(lambda: None)
            self._manager = self._open()

    def wait(self) -> None:
        """Finish what is being written.

        Raises:
            Unwritten: it could not be written; the checkpoints before are whole.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Finish what is being written, and end; see `wait`."""
        self.wait()
        self._manager.close()

    def _unwritten(self, error: Exception) -> "Unwritten":
        # The libraries put the system's own words at the end of theirs.
        found = re.search(r"([\w ]+) \[os_error_code=|\[OS error \d+: ([^\]]+)\]", str(error))
        why = (found[1] or found[2]).strip() if found else _reason(error)
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        last = self.latest
        return Unwritten(
            f"checkpoint in `{self._path}` not written: {why}; "
            + (f"the one of step {last} is whole: " if last else "")
            + "make room and run the same command again to resume."
        )


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:300]


def _by_path(tree: Any) -> dict[str, Any]:
    """Name every array by its path, so that the file holds no library's classes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").replace("/value", ""): leaf
        for path, leaf in flat
    }
