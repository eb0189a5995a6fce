"""Checkpoints of a run, by Orbax: atomic, so that a crash leaves the one before."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one run directory, newest last."""

    def __init__(self, directory: Path, keep: int):
        """Open or start them; `keep` is how many stay."""
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    @property
    def latest(self) -> int | None:
        """Number of steps taken in the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Save a tree of arrays, unless this step is saved already."""
        if step != self.latest:
            self._manager.save(step, args=ocp.args.StandardSave(_by_path(state)))
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
        """Restore a tree.

        Args:
            step: one that was saved.
            abstract: tree of shapes and dtypes.
            shardings: the same tree, or a prefix of it, of shardings.

        Raises:
            ValueError: the checkpoint holds other arrays than these.
        """
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
        try:
            found = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"checkpoint {step} in `{self._manager.directory}` is broken, or of another model "
                f"or optimizer ({error}); give an empty directory."
            ) from error
        return jax.tree.unflatten(treedef, [found[name] for name in target])

    def close(self) -> None:
        """Finish what is being written."""
        self._manager.close()


def _by_path(tree: Any) -> dict[str, Any]:
    """Name every array by its path: no library's own classes in the file."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").replace("/value", ""): leaf
        for path, leaf in flat
    }
