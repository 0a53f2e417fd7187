"""Fixed-dimensional encodings of multi-vectors, whose inner products approximate MaxSim."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.late_interaction.clustering import spherical_kmeans
from vrag_jax.retrieval.late_interaction.shapes import bucket

PARTITIONS = ('centres', 'simhash')
_STATE = 'fde.npz'
_CHUNK_FLOATS = 1 << 23  # Of the largest array of one call: 32 MiB.
_TOKENS_A_CENTRE = 128  # On which centres are learnt.
_ITERATIONS = 5


@dataclasses.dataclass(frozen=True)
class FdeConfig:
    """Sizes of the encodings of MUVERA (Dhulipala et al. 2024, arXiv 2405.19504).

    Attributes:
      repetitions: independent partitions of the space (R_reps).
      bits: a partition has 2^bits buckets (k_sim).
      inner_dims: to which tokens are projected (d_proj), at most the tokens' own; 0
        keeps them as they are.
      partition: 'simhash' sorts a token into the bucket of the signs of its products
        with random hyperplanes, as the paper does; 'centres' into that of the nearest
        of 2^bits centres learnt from the corpus. Page tokens fill a small part of the
        sphere, which few random hyperplanes cut.
      seed: of all that is random.
    """

    repetitions: int = 20
    bits: int = 5
    inner_dims: int = 16
    partition: str = 'centres'
    seed: int = 0

    def __post_init__(self):
        if self.repetitions < 1:
            raise ValueError(f'repetitions must be positive, got {self.repetitions}')
        if not 0 <= self.bits <= 10:
            raise ValueError(f'bits must be in [0, 10], got {self.bits}')
        if self.inner_dims < 0:
            raise ValueError(f'inner_dims must not be negative, got {self.inner_dims}')
        if self.partition not in PARTITIONS:
            raise ValueError(f'partition must be one of {PARTITIONS}, got {self.partition!r}')


class FdeEncoder:
    """Makes one vector of a page's tokens, and one of a query's.

    Each repetition sorts tokens into buckets. A query's block for a bucket is the sum of
    its tokens in it; a page's is the average, or, where the bucket is empty, the page's
    token that is nearest to it (the fewest different signs; the largest product with the
    centre). So the product of a query and a page is a sum over the query's tokens of
    their product with near tokens of the page.

    Blocks are projected with parts of random orthonormal bases. With centres, the mean of
    the sample is taken from tokens when they are sorted, and from the pages' when they
    are averaged: that shifts the scores of all pages alike, and what is left is
    projected with less loss.

    Made by `fit` or `from_files`.

    Attributes:
      config: of the encoding.
      dims: size of an encoding, repetitions * 2^bits * inner dims.
    """

    def __init__(self, config: FdeConfig, state: dict[str, np.ndarray]):
        self.config = config
        self._state = state
        self._arrays = {name: jnp.asarray(value) for name, value in state.items()}
        self.token_dims = len(state['mean'])
        self.dims = config.repetitions * 2**config.bits * (config.inner_dims or self.token_dims)

    @classmethod
    def fit(cls, sample: np.ndarray,
            config: FdeConfig = FdeConfig()) -> 'FdeEncoder':  # noqa: B008 (immutable)
        """Draws hyperplanes and projections, or learns centres.

        Args:
          sample: [N, D] tokens of the corpus; 'simhash' takes only their size.
          config: of the encoding.

        Raises:
          ValueError: if inner_dims is larger than the tokens' dimension.
        """
        dims = sample.shape[1]
        if config.inner_dims > dims:
            raise ValueError(f'inner_dims = {config.inner_dims}, but tokens have {dims} dimensions')
        rng = np.random.default_rng(config.seed)
        state: dict[str, np.ndarray] = {'mean': np.zeros(dims, np.float32)}
        if config.partition == 'simhash':
            planes = rng.standard_normal((dims, config.repetitions, config.bits))
            state['planes'] = planes.astype(np.float32)
        else:
            sample = sample.astype(np.float32)
            state['mean'] = sample.mean(axis=0)
            size = min(len(sample), _TOKENS_A_CENTRE * 2**config.bits)
            state['centres'] = np.stack([
                spherical_kmeans(
                    sample[rng.choice(len(sample), size, replace=False)] - state['mean'],
                    2**config.bits, _ITERATIONS, rng) for _ in range(config.repetitions)])
        if config.inner_dims:
            state['projections'] = _projections(dims, config.repetitions, config.inner_dims, rng)
        return cls(config, state)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of config and state: equal if and only if encodings can be compared."""
        digest = hashlib.sha256(repr(dataclasses.astuple(self.config)).encode())
        for name in sorted(self._state):
            digest.update(name.encode() + self._state[name].tobytes())
        return digest.hexdigest()

    def encode_pages(self, pages: Sequence[np.ndarray]) -> np.ndarray:
        """Encodes pages of [T, D] tokens each, T > 0, any float dtype, as [N, dims] float32."""
        return self._encode(pages, pages=True)

    def encode_queries(self, queries: Sequence[np.ndarray]) -> np.ndarray:
        """Encodes queries of [T, D] tokens each, any float dtype, as [N, dims] float32."""
        return self._encode(queries, pages=False)

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the state; returns the fields to read it by."""
        arrays: dict[str, Any] = dict(self._state)
        np.savez(folder / _STATE, **arrays)
        return dataclasses.asdict(self.config)

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any]) -> 'FdeEncoder':
        """Reads what `write_files` wrote; raises an ArtifactError if that is something else."""
        try:
            with np.load(folder / _STATE, allow_pickle=False) as file:
                return cls(FdeConfig(**fields), {name: file[name] for name in file.files})
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f'{folder / _STATE}: {error!r}') from error

    def _encode(self, items: Sequence[np.ndarray], pages: bool) -> np.ndarray:
        out = np.empty((len(items), self.dims), np.float32)
        lengths = np.array([len(item) for item in items], np.int64)
        # Those of similar lengths together, so that little is padding.
        order = np.argsort(-lengths, kind='stable')
        start = 0
        while start < len(order):
            padded = bucket(int(lengths[order[start]]), least=16, steps=8)
            floats = padded * self.config.repetitions * 2**self.config.bits
            rows = min(bucket(len(order) - start), 1 << (max(1, _CHUNK_FLOATS // floats)
                                                         .bit_length() - 1))
            chunk = order[start:start + rows]
            tokens = np.zeros((rows, padded, self.token_dims), np.float32)
            counts = np.zeros(rows, np.int32)
            for row, item in enumerate(chunk):
                tokens[row, :lengths[item]] = items[item]
                counts[row] = lengths[item]
            encoded = _encode(tokens, counts, self._arrays, pages=pages)
            out[chunk] = np.asarray(encoded)[:len(chunk)]
            start += len(chunk)
        return out


def _projections(dims: int, repetitions: int, inner: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [D, R, inner]: columns of random orthonormal bases, scaled to keep products."""
    parts: list[np.ndarray] = []
    while len(parts) < repetitions:
        basis = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
        parts += [basis[:, i:i + inner] for i in range(0, dims - inner + 1, inner)]
    scaled = np.stack(parts[:repetitions], axis=1) * np.sqrt(dims / inner)
    return scaled.astype(np.float32)


@functools.partial(jax.jit, static_argnames='pages')
def _encode(tokens: jax.Array, lengths: jax.Array, state: dict[str, jax.Array], *,
            pages: bool) -> jax.Array:
    """Returns [N, dims] encodings of tokens [N, T, D], of which the first `lengths` [N] count."""
    count, length, _ = tokens.shape
    einsum = functools.partial(jnp.einsum, precision='highest')
    real = (jnp.arange(length) < lengths[:, None])[:, None, None]  # [N, 1, 1, T]
    centred = tokens - state['mean']
    if 'planes' in state:
        bits = state['planes'].shape[2]
        buckets = 2**bits
        signs = einsum('ntd,drk->nrtk', centred, state['planes']) > 0
        codes = (signs << jnp.arange(bits)).sum(-1)  # [N, R, T]
    else:
        buckets = state['centres'].shape[1]
        closeness = einsum('rbd,ntd->nrbt', state['centres'], centred)
        # Not argmax, which takes XLA longer on CPUs than the products.
        codes = _first(closeness == closeness.max(2, keepdims=True), axis=2)
    member = (codes[:, :, None] == jnp.arange(buckets)[:, None]) & real  # [N, R, B, T]
    values = centred if pages else tokens
    if 'projections' in state:
        inner = einsum('ntd,dri->nrti', values, state['projections'])
    else:
        inner = jnp.broadcast_to(values[:, None], (*codes.shape, values.shape[-1]))
    blocks = einsum('nrbt,nrti->nrbi', member.astype(jnp.float32), inner)
    if pages:
        sizes = member.sum(-1)  # [N, R, B]
        if 'planes' in state:
            # Of the tokens in the nearest bucket that has any, the first.
            first = _first(member, axis=3)
            number = jnp.arange(buckets)
            differing = jax.lax.population_count(number[:, None] ^ number)  # [B, B]
            rank = jnp.where(sizes[:, :, None] > 0, differing * length + first[:, :, None],
                             (bits + 1) * length)
            nearest = rank.min(-1) % length  # [N, R, B]
        else:
            closeness = jnp.where(real, closeness, -jnp.inf)
            nearest = _first(closeness == closeness.max(3, keepdims=True), axis=3)
        filled = jnp.take_along_axis(inner, nearest[..., None], axis=2)
        averages = blocks / jnp.maximum(sizes, 1)[..., None]
        blocks = jnp.where(sizes[..., None] > 0, averages, filled)
    return blocks.reshape(count, -1)


def _first(true: jax.Array, axis: int) -> jax.Array:
    """Returns the index of the first true value along an axis, or the axis' length, int32."""
    size = true.shape[axis]
    shape = [1] * true.ndim
    shape[axis] = size
    numbers = jnp.arange(size, dtype=jnp.int32).reshape(shape)
    return jnp.where(true, numbers, size).min(axis)
