"""Patches are those of the HF image processor, made once for all who ask, within bounds."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.data.sequences import ImagePreprocessor, image_key

BYTES = 16 * 3 * 2 * 14 * 14 * 4  # Of the patches of a picture of 56 x 56.


def picture(seed, size=(56, 56)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))


class Counted:
    """The HF processor, which notes what it is given; waits until it is let through."""

    def __init__(self):
        self._processor = Qwen2VLImageProcessorPil()
        self.calls = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, images, **options):
        self.calls.append([image_key(image) for image in images])
        assert self.open.wait(20)
        return self._processor(images=images, **options)


@pytest.fixture
def counted():
    return Counted()


def test_patches_are_those_of_the_processor_whatever_is_kept(counted):
    pictures = [picture(0), picture(1, (84, 56)), picture(0), picture(2, (28, 112))]
    for cache_bytes in (0, BYTES, 1 << 30):
        preprocess = ImagePreprocessor(counted, 2, cache_bytes)
        for _ in range(2):
            for image, made in zip(pictures, preprocess(pictures), strict=True):
                want = Qwen2VLImageProcessorPil()(
                    images=[image], do_resize=False, return_tensors='np')
                np.testing.assert_array_equal(made.pixel_values, want['pixel_values'])
                assert made.key == image_key(image) and made.tokens == len(made.pixel_values) // 4
                assert made.grid_thw == tuple(want['image_grid_thw'][0])
                assert made.pixel_values.base is None or (
                    made.pixel_values.base.nbytes == made.pixel_values.nbytes)


def test_those_used_last_are_kept_within_the_bytes(counted):
    preprocess = ImagePreprocessor(counted, 2, 2 * BYTES)
    one, two = preprocess([picture(0), picture(1)])
    assert one.pixel_values.nbytes == BYTES
    assert preprocess([picture(0)])[0] is one
    preprocess([picture(2)])  # The second one makes room.
    assert preprocess([picture(0)])[0] is one and len(counted.calls) == 2
    assert preprocess([picture(1)])[0] is not two and len(counted.calls) == 3
    preprocess.clear()
    assert preprocess([picture(0)])[0] is not one
    assert preprocess([]) == []


def test_who_asks_at_the_same_time_waits_for_the_first(counted):
    preprocess = ImagePreprocessor(counted, 2, 1 << 30)
    counted.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(preprocess, [picture(0), picture(1)])
        while not counted.calls:
            pass
        others = [pool.submit(preprocess, [picture(1), picture(2 + i), picture(0)])
                  for i in range(3)]
        while len(counted.calls) < 4:
            pass
        counted.open.set()
        zero, one = first.result(20)
        for other in others:
            got = other.result(20)
            assert got[0] is one and got[2] is zero
    assert sorted(map(len, counted.calls)) == [1, 1, 1, 2]


def test_what_goes_wrong_is_heard_of_by_all_who_wait_and_tried_again(counted):
    preprocess = ImagePreprocessor(counted, 2, 1 << 30)
    process, started, go = counted._processor, threading.Event(), threading.Event()

    def broken(images, **options):
        started.set()
        assert go.wait(20)
        raise MemoryError('too large')

    counted._processor = broken
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
    counted._processor = process
    assert preprocess([picture(0)])[0].tokens == 4
