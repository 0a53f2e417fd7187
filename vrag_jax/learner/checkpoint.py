"""Orbax checkpoints of a training phase: arrays, random state, data position."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vrag_jax.learner.train_state import TrainState
from vrag_jax.parallel.sharding import leaf_path


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back.

    Attributes:
      state: the train state, in the shardings of the target.
      device_key: `[...]` uint32 data of the device's random key.
      host: JSON-able host state (random generator, data position).
    """

    state: TrainState
    device_key: np.ndarray
    host: Mapping[str, Any]


class Checkpointer:
    """Saves and restores a training phase in a directory.

    A checkpoint appears under its final name only when it is whole, so a run
    that is killed while saving goes on from the one before.

    Args:
      directory: where checkpoints lie, one folder a step.
      keep: how many of the newest are kept.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=False
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, device_key: np.ndarray, host: Mapping[str, Any]) -> None:
        """Saves after `state.step` steps; a step that exists is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = {'state': _as_dict(state), 'device_key': np.asarray(device_key)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(dict(host))
            ),
        )

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """Restores the newest checkpoint, or the one of `step`.

        Args:
          like: a state of the same structure; gives shapes, dtypes, shardings.
          step: which checkpoint.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if it does not fit `like`; names the parameter.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f'no checkpoint in {self._manager.directory}')
        target = {'state': _as_dict(like), 'device_key': np.zeros(2, np.uint32)}
        self._check_shapes(step, target)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()
            ),
        )
        arrays = restored['arrays']
        state = dataclasses.replace(like, **{name: arrays['state'][name] for name in _FIELDS})
        return Restored(state, np.asarray(arrays['device_key']), restored['host'])

    def _check_shapes(self, step: int, target: dict[str, Any]) -> None:
        """Names the first array that the checkpoint holds otherwise: orbax does not."""
        arrays = Path(self._manager.directory) / str(step) / 'arrays'
        stored = _shapes(ocp.StandardCheckpointHandler().metadata(arrays).tree)
        wanted = _shapes(target)
        for path in sorted(stored.keys() | wanted.keys()):
            if stored.get(path) != wanted.get(path):
                raise ValueError(
                    f'{arrays}: {path} has shape {stored.get(path, "(missing)")} in the '
                    f'checkpoint, but {wanted.get(path, "(missing)")} here'
                )

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


_FIELDS = ('trainable', 'frozen', 'opt_state', 'step')


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _FIELDS}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_path(path): tuple(leaf.shape) for path, leaf in leaves}
