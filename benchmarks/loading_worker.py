"""Writes a random checkpoint, reads it or saves it again: the worker of `loading`."""

import hashlib
import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import paired
from benchmarks.memory import Peak
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.families import family_of, preset
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.mesh import make_mesh

DIGESTED_BYTES = 64 * 2**20  # Of an array at a time.


class Loading:
    """The runs that can be asked for.

    Args:
      preset_name: of the model's sizes.
      dtype: of its parameters.
      max_shard_bytes: of a file.
    """

    def __init__(self, preset_name: str, dtype: str, max_shard_bytes: int):
        self.config = preset(preset_name)
        self.dtype = jnp.dtype(dtype)
        self.max_shard_bytes = max_shard_bytes
        _, self.shapes = flat_params(nnx.eval_shape(lambda: family_of(self.config).model(
            self.config, rngs=nnx.Rngs(0), param_dtype=self.dtype)))
        self.model: PolicyModel | None = None

    def write(self, path: str, seed: int) -> tuple[float, Any]:
        """Writes random parameters, each made when it is its turn; time of making not counted."""
        digests: dict[str, str] = {}
        making = 0.0

        def make(name: str) -> jax.Array:
            nonlocal making
            start = time.perf_counter()
            value = random_parameter(name, self.shapes[name], seed)
            digests.update(digests_of(name, value))
            making += time.perf_counter() - start
            return value

        with Peak() as peak:
            seconds, _ = paired.timed(lambda: hf_checkpoint.save_params(
                make, self.shapes, self.config, path, self.max_shard_bytes))
        return seconds - making, {**memory(peak), 'digests': digests}

    def read(self, path: str) -> tuple[float, Any]:
        """Loads a checkpoint over an fsdp mesh of all devices."""
        shardings = parameter_shardings(self.shapes, make_mesh({'fsdp': -1}))
        with Peak() as peak:
            def load() -> PolicyModel:
                model = hf_checkpoint.load(path, param_dtype=self.dtype, shardings=shardings)
                jax.block_until_ready(flat_params(model)[1])
                return model

            seconds, self.model = paired.timed(load)
        params = flat_params(self.model)[1]
        # What its devices hold, which is this process's memory here.
        held = sum(shard.data.nbytes for value in params.values()
                   for shard in value.addressable_shards)
        return seconds, {**memory(peak), 'held_gb': held / 1e9}

    def digests(self) -> tuple[float, Any]:
        """Returns the digests of what was read."""
        assert self.model is not None
        found: dict[str, str] = {}
        for name, value in flat_params(self.model)[1].items():
            found.update(digests_of(name, value))
        return 0.0, found

    def save(self, path: str) -> tuple[float, Any]:
        """Saves the model that was read."""
        model = self.model
        assert model is not None
        with Peak() as peak:
            seconds, _ = paired.timed(
                lambda: hf_checkpoint.save(model, path, self.max_shard_bytes))
        return seconds, memory(peak)


def random_parameter(name: str, leaf: Any, seed: int) -> jax.Array:
    """Draws a parameter: every bit at random but one, without which all are finite, below 2."""
    bits = np.dtype(f'uint{8 * leaf.dtype.itemsize}')
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    drawn = np.empty(leaf.shape, bits)
    for row in drawn if drawn.ndim > 1 else [drawn]:
        row[...] = np.frombuffer(rng.bytes(row.nbytes), bits).reshape(row.shape)
        row &= ~(1 << (bits.itemsize * 8 - 2)) & np.iinfo(bits).max  # The exponent's highest.
    return jax.device_put(drawn.view(leaf.dtype))


def digests_of(name: str, value: jax.Array) -> Iterable[tuple[str, str]]:
    """Yields names and digests of an array's rows, some at a time: there is no second copy."""
    rows = max(1, DIGESTED_BYTES // (value.nbytes // len(value)))
    for start in range(0, len(value), rows):
        yield f'{name}[{start}:]', _digest(_rows(value, start, min(start + rows, len(value))))


def _rows(value: jax.Array, start: int, stop: int) -> np.ndarray:
    """Some rows of an array, taken from each device's part; indexing it could gather it all."""
    out = np.empty((stop - start, *value.shape[1:]), value.dtype)
    for shard in value.addressable_shards:
        first, last, _ = shard.index[0].indices(len(value))
        begin, end = max(start, first), min(stop, last)
        if begin < end:
            out[(slice(begin - start, end - start), *shard.index[1:])] = (
                np.asarray(shard.data)[begin - first : end - first])
    return out


def _digest(array: np.ndarray) -> str:
    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=16).hexdigest()


def memory(peak: Peak) -> Mapping[str, Any]:
    """What is told of the memory of a run, in gigabytes."""
    return {'grown_gb': peak.grown(), 'peak_gb': round(peak.rss / 1e9, 4),
            'maxrss_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 4)}


def main() -> None:
    options = json.loads(sys.argv[1])
    loading = Loading(options['preset'], options['dtype'], options['max_shard_bytes'])
    for file in sorted(Path(options['forget']).glob('*')) if options['forget'] else ():
        forget(file)
    paired.serve(
        {'write': loading.write, 'read': loading.read, 'digests': loading.digests,
         'save': loading.save},
        {**paired.versions('jax', 'jaxlib', 'flax', 'numpy', 'safetensors'),
         'platform': jax.default_backend(), 'devices': jax.device_count(),
         'parameters': sum(int(np.prod(leaf.shape)) for leaf in loading.shapes.values())})


def forget(file: Path) -> None:
    """Has the system write a file to the disk, and drop what it keeps of it in memory."""
    with open(file, 'rb') as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == '__main__':
    main()
