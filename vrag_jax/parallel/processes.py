"""Work sharing and communication between the processes of a run."""

import functools
import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from vrag_jax.parallel.distributed import barrier, is_main

SMALLEST_CHUNK = 2**20
CHUNK_BYTES = 64 * 2**20  # Of each process at a time: it passes through device memory.

T = TypeVar('T')


def main_first(name: str, work: Callable[[], T]) -> T:
    """Does work in the main process first, which leaves its results on disk, then in the others."""
    if jax.process_count() == 1:
        return work()
    done = work() if is_main() else None
    barrier(name)
    return done if is_main() else work()  # type: ignore[return-value]


def exchange(value: T, name: str = 'exchange') -> list[T]:
    """Gives every process what each of them has, however long the slowest takes.

    Args:
      value: anything that pickles: it comes from processes of this very run.
      name: of the place in the program, as for `barrier`.

    Returns:
      The value of each process, in their order.
    """
    if jax.process_count() == 1:
        return [value]
    barrier(name)
    data = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
    # In bytes, because JAX has no 64-bit integers unless asked.
    own_size = np.array([len(data)], np.int64).view(np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(own_size)).reshape(-1, 8).copy().view(
        np.int64).reshape(-1)
    largest = int(np.max(sizes))
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    for start in range(0, largest, CHUNK_BYTES):
        # Powers of two, and no small ones, so that few programs are compiled.
        width = min(CHUNK_BYTES, max(
            SMALLEST_CHUNK, 1 << (largest - start - 1).bit_length()))
        chunk = np.zeros(width, np.uint8)
        own = data[start : start + width]
        chunk[: len(own)] = own
        for part, size, got in zip(
                parts, sizes, multihost_utils.process_allgather(chunk), strict=True):
            part.append(got[: max(0, min(width, int(size) - start))])
    return [pickle.loads(np.concatenate(part).tobytes()) for part in parts]


def agree(value: str, what: str) -> None:
    """Checks that a text, e.g. a config, is the same in all processes.

    Args:
      value: the text.
      what: its name in messages.

    Raises:
      ValueError: in all processes, if it differs; says who has what in the first line
        that does.
    """
    texts = [text.splitlines() for text in exchange(value, f'agree on {what}')]
    for lines in itertools.zip_longest(*texts, fillvalue=''):
        if len(set(lines)) > 1:
            raise ValueError(f'{what} differs: {_who_has_what(lines)}')


def _who_has_what(values: Sequence[str]) -> str:
    """Returns e.g. "processes 0, 2: 'a'; process 1: 'b'" of what each process has."""
    groups: dict[str, list[int]] = {}
    for process, value in enumerate(values):
        groups.setdefault(value, []).append(process)
    return '; '.join(
        f'process{"es" * (len(group) > 1)} {", ".join(map(str, group))}: {value[:300]!r}'
        for value, group in groups.items())


def share(items: Sequence[T], group: int = 1) -> list[int]:
    """Returns the indices of this process' items: whole groups, dealt out in turn."""
    count, index = jax.process_count(), jax.process_index()
    return [i for i in range(len(items)) if (i // group) % count == index]


def merge_shares(values: Sequence[T], total: int, group: int = 1) -> list[T]:
    """Exchanges what each process has made of its `share`; returns it in the items' order."""
    shares = exchange(list(values))
    places = [iter(part) for part in shares]
    return [next(places[(i // group) % len(shares)]) for i in range(total)]


def put(tree: Any, shardings: Any) -> Any:
    """Places arrays that every process has on devices that may be of several processes."""
    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, shardings)


def to_host(value: jax.Array) -> np.ndarray:
    """Returns a whole array in every process, which all call it at the same time."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def local_mesh(mesh: Mesh) -> Mesh:
    """Returns a mesh of this process' devices, with the axes of the global one.

    The last axes keep their sizes as far as the devices go, those in front are what is
    left.

    Args:
      mesh: over the devices of all processes; of one process alone it is returned.

    Raises:
      ValueError: if the axes cannot be cut so.
    """
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if len(own) == mesh.size:
        return mesh
    sizes: list[int] = []
    left = len(own)
    for size in reversed(mesh.devices.shape):
        sizes.append(math.gcd(size, left))
        left //= sizes[-1]
    if left > 1:
        raise ValueError(f'the {len(own)} devices of a process cannot be laid out along the axes '
                         f'of the mesh {dict(mesh.shape)}')
    return Mesh(np.array(own).reshape(sizes[::-1]), mesh.axis_names, axis_types=mesh.axis_types)


def to_local(value: jax.Array, mesh: Mesh, target: NamedSharding) -> jax.Array:
    """Copies a global array to this process' devices, each of which gets its part alone.

    Every process calls it at the same time.

    Args:
      value: on all devices of `mesh`.
      mesh: over the devices of all processes.
      target: on the mesh of this process, see `local_mesh`.
    """
    wide = NamedSharding(_by_process(mesh, target.mesh.devices.shape), target.spec)
    spread = jax.device_put(value, wide)
    own = [shard.data for shard in spread.addressable_shards]
    return jax.make_array_from_single_device_arrays(value.shape, target, own)


@functools.cache
def _by_process(mesh: Mesh, local_shape: tuple[int, ...]) -> Mesh:
    """All devices, those of a process side by side: its axis in front of the others."""
    devices = sorted(mesh.devices.flat, key=lambda d: d.process_index)  # Stable.
    shaped = np.array(devices).reshape(-1, *local_shape)
    types = (mesh.axis_types[0], *mesh.axis_types)
    return Mesh(shaped, ('process', *mesh.axis_names), axis_types=types)
