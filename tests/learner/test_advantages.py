"""Group-normalised advantages against numbers worked out by hand."""

import numpy as np
import pytest

from vrag_jax.learner.variants import group_normalised


def test_one_right_answer_in_five():
    # Mean 0.2; unbiased variance (0.8^2 + 4 * 0.2^2) / 4 = 0.2.
    std = 0.2**0.5
    got = group_normalised(np.array([[1.0, 0, 0, 0, 0]]))
    np.testing.assert_allclose(got, [[0.8 / std, *[-0.2 / std] * 4]], rtol=1e-5)
    assert got.dtype == np.float32


def test_a_pair_by_hand():
    # Mean 0.5; unbiased variance (0.3^2 + 0.3^2) / 1 = 0.18.
    np.testing.assert_allclose(
        group_normalised(np.array([[0.2, 0.8]])), [[-(0.5**0.5), 0.5**0.5]], rtol=1e-5)


def test_every_group_has_its_own_mean_and_scale():
    rewards = np.array([[0.0, 1, 2], [100, 100, 130]])
    both = group_normalised(rewards)
    for group, alone in zip(rewards, both, strict=True):
        np.testing.assert_array_equal(group_normalised(group[None])[0], alone)
    np.testing.assert_allclose(both[0], [-1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(both.sum(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize('reward', [0.0, 0.1, 1.0])
def test_equal_rewards_have_no_advantage(reward):
    np.testing.assert_allclose(group_normalised(np.full((2, 5), reward)), 0.0, atol=1e-9)


def test_epsilon_is_added_to_the_deviation():
    # Deviation 0.5 * sqrt(2).
    got = group_normalised(np.array([[0.0, 1.0]]), epsilon=1.0)
    np.testing.assert_allclose(got, np.array([[-0.5, 0.5]]) / (0.5**0.5 + 1), rtol=1e-6)


@pytest.mark.parametrize('shape', [(3, 1), (4,), (2, 2, 2)])
def test_groups_of_one_and_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='group_size >= 2'):
        group_normalised(np.zeros(shape))
