"""Centres of planted clusters are found, and static sizes waste little."""

import numpy as np
import pytest

from vrag_jax.retrieval.late_interaction.clustering import nearest_centres, spherical_kmeans
from vrag_jax.retrieval.late_interaction.shapes import bucket


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_planted_centres_are_found():
    planted = unit(6, 16)
    vectors = np.repeat(planted, 100, axis=0) + 0.1 * unit(600, 16, seed=1)
    centres = spherical_kmeans(vectors, 24, 8, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
    assert (planted @ centres.T).max(1).min() > 0.99


def test_more_centres_than_vectors_are_allowed():
    centres = spherical_kmeans(unit(3, 8), 8, 3, np.random.default_rng(0))
    assert centres.shape == (8, 8) and np.isfinite(centres).all()


def test_the_nearest_centre_is_the_first_of_the_largest_product():
    vectors, centres = unit(2500, 8), unit(40, 8, seed=1)
    centres = np.concatenate([centres, centres])  # Each stands twice.
    np.testing.assert_array_equal(
        nearest_centres(vectors, centres), (vectors @ centres[:40].T).argmax(1))


@pytest.mark.parametrize('steps, sizes', [
    (1, [1, 2, 4, 8, 16, 32]), (2, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]),
    (4, [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32])])
def test_a_bucket_is_the_least_of_the_scale_that_holds_the_size(steps, sizes):
    for size in range(33):
        assert bucket(size, steps=steps) == min(s for s in sizes if s >= size)
    assert bucket(3, least=10) == 12
