"""M-RoPE positions by hand, and the angles' axes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.golden_cases import GOLDENS, PUBLISHED_YARN
from vrag_jax.models.common.config import YarnConfig
from vrag_jax.models.common.mrope import (
    image_positions,
    rope_index,
    rotary_angles,
    rotate,
    text_positions,
    yarn_frequencies,
)
from vrag_jax.models.families import preset

CONFIG = preset('tiny', vocab_size=16, image_token_id=3)


def test_text_has_the_same_position_on_all_axes():
    np.testing.assert_array_equal(text_positions(5, 3), [[5, 6, 7]] * 3)


def test_an_image_counts_rows_and_columns_and_ends_past_its_longer_side():
    positions, after = image_positions(10, (1, 4, 6), merge_size=2)
    np.testing.assert_array_equal(positions, [
        [10, 10, 10, 10, 10, 10],
        [10, 10, 10, 11, 11, 11],
        [10, 11, 12, 10, 11, 12]])
    assert after == 13


def test_a_sequence_of_text_and_two_images():
    tokens = np.array([5, 6, 3, 3, 7, 3, 3, 3, 8])
    positions, after = rope_index(tokens, [(1, 4, 2), (1, 2, 6)], CONFIG)
    np.testing.assert_array_equal(positions, [
        [0, 1, 2, 2, 4, 5, 5, 5, 8],
        [0, 1, 2, 3, 4, 5, 5, 5, 8],
        [0, 1, 2, 2, 4, 5, 6, 7, 8]])
    assert after == 9


def test_adjacent_images_need_no_text_between_them():
    positions, after = rope_index(np.array([3, 3]), [(1, 2, 2), (1, 2, 2)], CONFIG)
    np.testing.assert_array_equal(positions, [[0, 1]] * 3)
    assert after == 2


@pytest.mark.parametrize(('tokens', 'grids'), [
    ([5, 3, 3], [(1, 4, 4)]),
    ([5, 3, 3, 6, 3, 3], [(1, 4, 4)]),
    ([5, 6], [(1, 2, 2)]),
    ([3, 3, 3], [(1, 4, 2)]),
])
def test_placeholders_that_do_not_fit_the_images_are_refused(tokens, grids):
    with pytest.raises(ValueError, match='placeholders'):
        rope_index(np.array(tokens), grids, CONFIG)


def test_each_frequency_follows_its_axis():
    """With mrope_section (4, 6, 6): frequencies 0-3 time, 4-9 height, 10-15 width."""
    config = dataclasses.replace(
        CONFIG, text=dataclasses.replace(
            CONFIG.text, rope_theta=10000.0, mrope_section=(4, 6, 6)))
    for axis, frequencies in enumerate((range(4), range(4, 10), range(10, 16))):
        positions = jnp.zeros((3, 1, 1), jnp.int32).at[axis].set(7)
        cos, sin = rotary_angles(positions, config)
        angles = np.zeros(16)
        for i in frequencies:
            angles[i] = 7 * 10000.0 ** (-i / 16)
        np.testing.assert_allclose(cos[0, 0], np.cos(angles), atol=1e-6)
        np.testing.assert_allclose(sin[0, 0], np.sin(angles), atol=1e-6)


def test_rotation_turns_pairs_as_complex_numbers():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3, 8), np.float32)
    angle = generator.standard_normal((2, 4)).astype(np.float32)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[:, None]
    got = rotate(jnp.asarray(x), jnp.cos(angle), jnp.sin(angle))
    np.testing.assert_allclose(
        got, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-5)


def test_yarn_of_the_7b_is_what_transformers_has():
    published = {name: value for name, value in PUBLISHED_YARN.items()
                 if name not in ('type', 'mrope_section')}
    text = dataclasses.replace(preset('qwen2_5_vl_7b').text, yarn=YarnConfig(**published))
    frequencies, scale = yarn_frequencies(text)
    with np.load(GOLDENS / 'yarn.npz') as golden:
        np.testing.assert_allclose(frequencies, golden['published_frequencies'], rtol=1e-5)
        assert scale == pytest.approx(float(golden['published_scale']))
    plain = 1e6 ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(frequencies[:20], plain[:20], rtol=1e-6)
    np.testing.assert_allclose(frequencies[-20:], plain[-20:] / 4, rtol=1e-6)


def test_yarn_of_factor_1_changes_nothing():
    positions = jnp.asarray(np.arange(12).reshape(3, 1, 4), jnp.int32)
    stretched = dataclasses.replace(CONFIG, text=dataclasses.replace(
        CONFIG.text, yarn=YarnConfig(1.0, 128)))
    for ours, plain in zip(rotary_angles(positions, stretched), rotary_angles(positions, CONFIG),
                           strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)
