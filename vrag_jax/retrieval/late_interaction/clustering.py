"""Spherical k-means of token vectors."""

import jax
import jax.numpy as jnp
import numpy as np

_PRODUCTS = 1 << 21  # In one call: 8 MiB, that stay in a CPU's cache until they are reduced.


def spherical_kmeans(vectors: np.ndarray, count: int, iterations: int,
                     rng: np.random.Generator) -> np.ndarray:
    """Returns centres of unit length that vectors lie close to in angle.

    Args:
      vectors: [N, D] float32, none all zero.
      count: centres wanted; some are alike where there are fewer vectors.
      iterations: of Lloyd's algorithm. A centre that no vector is close to is moved to
        a vector drawn by chance.
      rng: draws vectors as the first centres.

    Returns:
      [count, D] float32.
    """
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centres = vectors[rng.choice(len(vectors), count, replace=len(vectors) < count)]
    for _ in range(iterations):
        nearest = nearest_centres(vectors, centres)
        order = np.argsort(nearest, kind='stable')
        found, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        centres = vectors[rng.integers(len(vectors), size=count)]
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres[found] = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres[found])
    return centres


def nearest_centres(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the centre with the largest product, int32 [N], for vectors [N, D]."""
    nearest = np.empty(len(vectors), np.int32)
    rows = max(_PRODUCTS // len(centres), 64)
    for start in range(0, len(vectors), rows):
        part = np.zeros((rows, vectors.shape[1]), np.float32)
        size = min(rows, len(vectors) - start)
        part[:size] = vectors[start:start + size]
        nearest[start:start + size] = np.asarray(_nearest(part, centres))[:size]
    return nearest


@jax.jit
def _nearest(vectors: jax.Array, centres: jax.Array) -> jax.Array:
    # Two reductions along the first axis; XLA's argmax takes longer than the products.
    products = centres @ vectors.T
    best = products == products.max(axis=0)
    return jnp.where(best, jnp.arange(len(centres), dtype=jnp.int32)[:, None],
                     len(centres)).min(axis=0)
