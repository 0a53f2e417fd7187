"""Orbax checkpoints of a training phase: arrays, random state, data position.

Frozen parameters are not saved, with adapters they would be nearly all of it: whoever
restores has them from where they came at first. Their digests are, so that others are
refused.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vrag_jax.learner.train_state import TrainState
from vrag_jax.models.common.parameters import Params
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

        self._digests: tuple[Params, dict[str, np.ndarray]] | None = None

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def warm_up(self, state: TrainState) -> None:
        """Works out the digests of what is frozen, so that no save compiles anything."""
        self._frozen_digests(state)

    def save(self, state: TrainState, device_key: np.ndarray, host: Mapping[str, Any]) -> None:
        """Saves after `state.step` steps; a step that exists is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = self._as_tree(state) | {'device_key': np.asarray(device_key)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(dict(host))
            ),
        )

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """Restores the newest checkpoint, or the one of `step`.

        Args:
          like: a state of the same structure; gives shapes, dtypes, shardings, and the
            frozen parameters.
          step: which checkpoint.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if it does not fit `like`, or was made with other frozen
            parameters; names the parameter.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f'no checkpoint in {self._manager.directory}')
        target = self._as_tree(like) | {'device_key': np.zeros(2, np.uint32)}
        self._check_shapes(step, target)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()
            ),
        )
        arrays = restored['arrays']
        for path, digest in target['frozen'].items():
            if int(arrays['frozen'][path]) != int(digest):
                raise ValueError(
                    f'{self._manager.directory}: this checkpoint was made with another frozen '
                    f'{path}; start from the same policy, or with another workdir')
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

    def _as_tree(self, state: TrainState) -> dict[str, Any]:
        """What is saved of a state."""
        return {'state': {name: getattr(state, name) for name in _FIELDS},
                'frozen': self._frozen_digests(state)}

    def _frozen_digests(self, state: TrainState) -> dict[str, np.ndarray]:
        if self._digests is None or self._digests[0] is not state.frozen:
            found = _digests(state.frozen) if state.frozen else {}
            self._digests = state.frozen, {path: np.asarray(x) for path, x in found.items()}
        return self._digests[1]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


_FIELDS = ('trainable', 'opt_state', 'step')


@jax.jit
def _digests(params: Params) -> dict[str, jax.Array]:
    """A scalar uint32 of each parameter: of its bits and their places, on any mesh the same."""
    return {leaf_path(path): _digest(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params))}


def _digest(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
    bits = x.astype(jnp.uint32)
    weights = jnp.ones((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        weights = weights * jnp.uint32(size) + place
    # Odd weights: none of them makes a bit count for nothing.
    return jnp.sum(bits * (2 * weights + 1), dtype=jnp.uint32)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_path(path): tuple(leaf.shape) for path, leaf in leaves}
