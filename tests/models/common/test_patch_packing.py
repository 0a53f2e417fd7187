"""Packing of patches: windows, order, buckets; what must not change the features."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.patch_packing import bucket_size, count_windows, pack_images
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

CONFIG = preset('tiny', vocab_size=16)
# Two windows of which both are partial; one partial window; four windows.
GRIDS = ((1, 10, 6), (1, 4, 8), (1, 12, 10))


def make_images(grids=GRIDS):
    generator = np.random.default_rng(0)
    return [(generator.standard_normal((h * w, CONFIG.vision.patch_dim), np.float32), (t, h, w))
            for t, h, w in grids]


@functools.cache
def encoder():
    """`encode_images` of a tiny model, its weights random and attention far from uniform."""
    graphdef, shapes = flat_params(
        nnx.eval_shape(lambda: Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))))
    generator = np.random.default_rng(1)
    params = {path: (0.1 * generator.standard_normal(leaf.shape)).astype(np.float32)
              for path, leaf in shapes.items()}
    jitted = jax.jit(lambda params, batch: merge(graphdef, params).encode_images(batch))
    return lambda batch: np.asarray(jitted(params, batch))


def features_of(images, **options):
    """Features of each image."""
    rows = encoder()(pack_images(images, CONFIG, **options))
    counts = [grid[1] * grid[2] // 4 for _, grid in images]
    return np.split(rows[: sum(counts)], np.cumsum(counts)[:-1])


def test_buckets_are_powers_of_two_and_one_and_a_half_times_them():
    assert [bucket_size(n) for n in (0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 100)] == [
        1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 128]


def test_windows_are_counted_by_image():
    assert [count_windows([grid], CONFIG.vision) for grid in GRIDS] == [2, 1, 4]
    assert count_windows(GRIDS, CONFIG.vision) == 7


def test_the_layout_drawn_in_the_module():
    """A 140 x 84 pixel image: 5 x 3 merged tokens in two windows of 4 x 4."""
    batch = pack_images(make_images([(1, 10, 6)]), CONFIG, windows=3)
    tokens = np.full(3 * 16, -1)
    tokens[batch.order[:15]] = np.arange(15)
    np.testing.assert_array_equal(tokens.reshape(3, 4, 4), [
        [[0, 1, 2, -1], [3, 4, 5, -1], [6, 7, 8, -1], [9, 10, 11, -1]],
        [[12, 13, 14, -1], [-1] * 4, [-1] * 4, [-1] * 4],
        np.full((4, 4), -1)])
    assert (batch.order[15:] == -1).all()
    np.testing.assert_array_equal(
        batch.image_ids.reshape(-1, 4), np.where(tokens < 0, -1, 0)[:, None].repeat(4, 1))
    np.testing.assert_array_equal(batch.first_window, [0, 0, 2])
    # Patches of merged token 13, which begins at patch row 8, column 2.
    np.testing.assert_array_equal(
        batch.positions.reshape(-1, 4, 2)[17], [[8, 2], [8, 3], [9, 2], [9, 3]])


def test_every_patch_is_packed_once():
    images = make_images()
    batch = pack_images(images, CONFIG)
    packed = batch.pixels.reshape(-1, 4, CONFIG.vision.patch_dim)
    for number, (start, (pixels, _)) in enumerate(zip((0, 15, 23), images, strict=True)):
        rows = batch.order[start : start + len(pixels) // 4]
        np.testing.assert_array_equal(packed[rows].reshape(pixels.shape), pixels)
        assert (batch.image_ids.reshape(-1, 4)[rows] == number).all()
    assert (batch.image_ids >= 0).sum() == sum(len(pixels) for pixels, _ in images)


def test_padding_windows_and_a_wider_span_do_not_change_features():
    images = make_images()
    for options in (dict(windows=12), dict(windows=16, span=16)):
        for got, want in zip(features_of(images, **options), features_of(images), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_images_do_not_see_each_other_whatever_their_order():
    images = make_images()
    alone = [features_of([image])[0] for image in images]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = features_of([images[i] for i in order])
        for i, got in zip(order, together, strict=True):
            np.testing.assert_allclose(got, alone[i], atol=1e-5)


def test_span_one_is_exact_for_images_of_one_window():
    """Where each image is one window, full attention is window attention."""
    images = make_images([(1, 8, 8), (1, 4, 6)])
    assert pack_images(images, CONFIG).span == 1
    for got, want in zip(features_of(images), features_of(images, span=2), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_full_attention_reaches_beyond_the_window():
    pixels, grid = make_images([(1, 8, 16)])[0]
    changed = pixels.copy()
    changed[40] += 1  # Merged token 10: column 2 of row 1, in the first window.
    (before,), (after,) = features_of([(pixels, grid)]), features_of([(changed, grid)])
    in_second_window = np.arange(32) % 8 >= 4
    assert (np.abs(after - before).max(axis=1)[in_second_window] > 1e-6).all()


def test_padding_rows_are_zero():
    batch = pack_images(make_images(), CONFIG)
    assert not encoder()(batch)[38 + 15 :].any()


@pytest.mark.parametrize(('images', 'options', 'message'), [
    (make_images(), dict(windows=6), 'windows = 6'),
    (make_images(), dict(span=2), 'span = 2'),
    ([(np.zeros((32, CONFIG.vision.patch_dim)), (2, 4, 4))], {}, 'video'),
    ([(np.zeros((12, CONFIG.vision.patch_dim)), (1, 3, 4))], {}, 'multiples of 2'),
    ([(np.zeros((15, CONFIG.vision.patch_dim)), (1, 4, 4))], {}, r'\(15, 1176\)'),
    ([(np.zeros((16, 1176), np.uint8), (1, 4, 4))], {}, r'uint8 .*, expected \(16, 588\)'),
])
def test_images_that_do_not_fit_are_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        pack_images(images, CONFIG, **options)


def test_bytes_are_packed_as_floats_are():
    images = make_images()
    as_bytes = [(np.arange(grid[1] * grid[2] * CONFIG.vision.patch_bytes).reshape(
        len(pixels), -1).astype(np.uint8), grid) for pixels, grid in images]
    batch, floats = pack_images(as_bytes, CONFIG), pack_images(images, CONFIG)
    assert batch.pixels.dtype == np.uint8 and floats.pixels.dtype == np.float32
    np.testing.assert_array_equal(batch.order, floats.order)
    packed = batch.pixels.reshape(-1, 4, CONFIG.vision.patch_bytes)
    for start, (patches, _) in zip((0, 15, 23), as_bytes, strict=True):
        rows = batch.order[start : start + len(patches) // 4]
        np.testing.assert_array_equal(packed[rows].reshape(patches.shape), patches)
    with pytest.raises(ValueError, match=r'images \[0, 2\] are floats'):
        pack_images([images[0], as_bytes[1], images[2]], CONFIG)


def test_no_images_give_an_empty_buffer():
    batch = pack_images([], CONFIG, windows=2)
    assert (batch.order == -1).all()
    assert not encoder()(batch).any()
