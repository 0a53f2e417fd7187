"""Bytes that the tower makes numbers of are the HF image processor's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.patch_packing import pack_images
from vrag_jax.models.common.pixels import PixelScale, image_patches, patch_values
from vrag_jax.models.families import config_from_hf, preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

PROCESSORS = {
    'published': {}, 'tiny': {'image_mean': [0.97] * 3, 'image_std': [0.25] * 3},
    'no rescaling': {'do_rescale': False}, 'no normalisation': {'do_normalize': False},
    'bytes': {'do_rescale': False, 'do_normalize': False},
    'one mean': {'image_mean': 0.5, 'image_std': 0.25, 'rescale_factor': 1 / 128},
    'other patches': {'patch_size': 4, 'merge_size': 3, 'temporal_patch_size': 1},
}


def picture(seed=0, width=168, height=84, mode='RGB'):
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == 'RGB' else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)


def of_processor(processor, image):
    out = processor(images=[image], do_resize=False, return_tensors='np')
    return out['pixel_values'], tuple(int(n) for n in out['image_grid_thw'][0])


@pytest.mark.parametrize('options', PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_values_are_those_of_the_processor(options, mode):
    processor = Qwen2VLImageProcessorPil(**options)
    image = picture(mode=mode)
    want, _ = of_processor(processor, image)
    patches = image_patches(image, processor.patch_size, processor.merge_size)
    assert patches.dtype == np.uint8
    assert patches.nbytes * 4 * processor.temporal_patch_size == want.nbytes
    scale, frames = PixelScale.of_processor(processor), processor.temporal_patch_size
    on_device = jax.jit(lambda x: patch_values(x, scale, frames, jnp))(patches)
    for got in (patch_values(patches, scale, frames), np.asarray(on_device)):
        assert got.dtype == want.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_every_byte_of_every_channel_has_the_value_of_the_processor():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp)).resize((28 * 9, 256)).crop((0, 0, 252, 252))
    for processor in (Qwen2VLImageProcessorPil(), Qwen2VLImageProcessorPil(**PROCESSORS['tiny'])):
        got = patch_values(image_patches(image, 14, 2), PixelScale.of_processor(processor), 2)
        np.testing.assert_allclose(got, of_processor(processor, image)[0], rtol=0, atol=1e-6)


def test_the_default_is_that_of_the_published_checkpoints():
    assert PixelScale() == PixelScale.of_processor(Qwen2VLImageProcessorPil())


@pytest.mark.parametrize('size', [(28, 14), (30, 28), (0, 28)])
def test_sides_that_do_not_divide_are_refused(size):
    with pytest.raises(ValueError, match=f'{size[0]} x {size[1]} pixels: .* multiples of 28'):
        image_patches(Image.new('RGB', size), 14, 2)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 2e-2)])
@pytest.mark.parametrize('options', [PROCESSORS['published'], PROCESSORS['tiny']])
def test_features_of_bytes_are_those_of_the_processors_numbers(options, dtype, tolerance):
    processor = Qwen2VLImageProcessorPil(**options)
    config = preset('tiny', vocab_size=64)
    config = dataclasses.replace(config, vision=dataclasses.replace(
        config.vision, pixels=PixelScale.of_processor(processor)))
    graphdef, params = flat_params(Qwen2_5_VL(config, rngs=nnx.Rngs(0), dtype=dtype))
    encode = jax.jit(lambda batch: merge(graphdef, params).encode_images(batch))
    shown = [picture(1), picture(2, 56, 112)]
    numbers = [of_processor(processor, image) for image in shown]
    as_bytes = [(image_patches(image, 14, 2), grid)
                for image, (_, grid) in zip(shown, numbers, strict=True)]
    packed = pack_images(as_bytes, config)
    assert packed.pixels.dtype == np.uint8
    assert packed.pixels.nbytes * 8 == pack_images(numbers, config).pixels.nbytes
    got, want = (np.asarray(encode(batch), np.float32)
                 for batch in (packed, pack_images(numbers, config)))
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def test_how_bytes_are_scaled_is_not_the_models_own():
    """It stands in the image processor's file beside the model's."""
    config = preset('tiny', vocab_size=64)
    changed = dataclasses.replace(config, vision=dataclasses.replace(
        config.vision, pixels=PixelScale(mean=(0.5,) * 3)))
    assert changed.to_hf() == config.to_hf()
    assert config_from_hf(changed.to_hf()).vision.pixels == PixelScale()
