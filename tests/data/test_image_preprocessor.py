"""Patches are those of the HF image processor, made once for all who ask, within bounds."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.models.common.images import ImagePreprocessor, image_key
from vrag_jax.models.common.pixels import patch_values
from vrag_jax.models.families import image_spec, preset

CONFIG = preset('tiny', vocab_size=64)
VISION, SPEC = CONFIG.vision, image_spec(CONFIG)
BYTES = 16 * 3 * 14 * 14  # Of the patches of a picture of 56 x 56.


def picture(seed, size=(56, 56)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))


class Counted(ImagePreprocessor):
    """One that notes what it cuts into patches; waits until it is let through."""

    def __init__(self, cache_bytes=0):
        super().__init__(Qwen2VLImageProcessorPil(), SPEC, cache_bytes)
        self.calls = []
        self.open = threading.Event()
        self.open.set()

    def _process(self, images):
        self.calls.append(list(images))
        assert self.open.wait(20)
        return super()._process(images)


def test_patches_are_those_of_the_processor_whatever_is_kept():
    pictures = [picture(0), picture(1, (84, 56)), picture(0), picture(2, (28, 112))]
    for cache_bytes in (0, BYTES, 1 << 30):
        preprocess = ImagePreprocessor(Qwen2VLImageProcessorPil(), SPEC, cache_bytes)
        for _ in range(2):
            for image, made in zip(pictures, preprocess(pictures), strict=True):
                want = Qwen2VLImageProcessorPil()(
                    images=[image], do_resize=False, return_tensors='np')
                values = patch_values(made.patches, VISION.pixels, VISION.temporal_patch_size)
                np.testing.assert_allclose(values, want['pixel_values'], rtol=0, atol=1e-6)
                assert made.key == image_key(image) and made.tokens == len(made.patches) // 4
                assert made.grid_thw == tuple(want['image_grid_thw'][0])
                # An eighth of the processor's numbers, and nothing else is kept alive.
                held = made.patches if made.patches.base is None else made.patches.base
                assert held.nbytes * 8 == made.patches.nbytes * 8 == want['pixel_values'].nbytes


@pytest.mark.parametrize(('options', 'message'), [
    ({'patch_size': 16}, r'the patch_size of the image processor is 16, .* vision tower 14'),
    ({'merge_size': 1}, 'the merge_size of the image processor is 1, .* vision tower 2'),
    ({'temporal_patch_size': 1}, 'the temporal_patch_size of the image processor is 1'),
    ({'image_mean': [0.5] * 3}, r'the scale of the image processor .*mean=\(0.5, 0.5, 0.5\)'),
    ({'do_rescale': False}, r'the scale of the image processor .*factor=1.0'),
])
def test_a_processor_that_is_not_the_towers_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessor(Qwen2VLImageProcessorPil(**options), SPEC)


def test_those_used_last_are_kept_within_the_bytes():
    preprocess = Counted(2 * BYTES)
    one, two = preprocess([picture(0), picture(1)])
    assert one.patches.nbytes == BYTES
    assert preprocess([picture(0)])[0] is one
    preprocess([picture(2)])  # The second one makes room.
    assert preprocess([picture(0)])[0] is one and len(preprocess.calls) == 2
    assert preprocess([picture(1)])[0] is not two and len(preprocess.calls) == 3
    preprocess.clear()
    assert preprocess([picture(0)])[0] is not one
    assert preprocess([]) == []


def test_who_asks_at_the_same_time_waits_for_the_first():
    preprocess = Counted(1 << 30)
    preprocess.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(preprocess, [picture(0), picture(1)])
        while not preprocess.calls:
            pass
        others = [pool.submit(preprocess, [picture(1), picture(2 + i), picture(0)])
                  for i in range(3)]
        while len(preprocess.calls) < 4:
            pass
        preprocess.open.set()
        zero, one = first.result(20)
        for other in others:
            got = other.result(20)
            assert got[0] is one and got[2] is zero
    assert sorted(map(len, preprocess.calls)) == [1, 1, 1, 2]


def test_what_goes_wrong_is_heard_of_by_all_who_wait_and_tried_again():
    started, go = threading.Event(), threading.Event()

    class Broken(ImagePreprocessor):
        broken = True

        def _process(self, images):
            started.set()
            assert go.wait(20)
            if self.broken:
                raise MemoryError('too large')
            return super()._process(images)

    preprocess = Broken(Qwen2VLImageProcessorPil(), SPEC, 1 << 30)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(preprocess, [picture(0)])
        assert started.wait(20)
        second = pool.submit(preprocess, [picture(0)])
        while not preprocess._under_way[image_key(picture(0))]._condition._waiters:
            pass
        go.set()
        for future in (first, second):
            with pytest.raises(MemoryError, match='too large'):
                future.result(20)
    preprocess.broken = False
    assert preprocess([picture(0)])[0].tokens == 4
