"""Image bytes to patches and to the vision tower's input numbers.

On the host, and on the way to the devices, a patch is the bytes of its pixels. The HF image
processor makes float32 numbers of them and repeats an image as the frames of a video: eight
times as much. The tower does both where it takes them.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class PixelScale:
    """A byte of a pixel as a number: `(byte * factor - mean) / std`, by channel.

    By default that of the published Qwen2-VL and Qwen2.5-VL checkpoints.
    """

    factor: float = 1 / 255
    mean: tuple[float, ...] = OPENAI_CLIP_MEAN
    std: tuple[float, ...] = OPENAI_CLIP_STD

    @classmethod
    def of_processor(cls, processor: Any) -> 'PixelScale':
        """Returns that of a HF image processor of the Qwen2-VL family."""
        def channels(value: Any) -> tuple[float, ...]:
            values = np.broadcast_to(np.asarray(value, np.float64), 3)
            return tuple(float(x) for x in values)

        return cls(
            float(processor.rescale_factor) if processor.do_rescale else 1.0,
            channels(processor.image_mean if processor.do_normalize else 0.0),
            channels(processor.image_std if processor.do_normalize else 1.0))


def image_patches(image: Image.Image, patch: int, merge: int) -> np.ndarray:
    """Cuts an image into patches, in the HF image processor's order.

    Args:
      image: of any mode, which is taken as RGB.
      patch: pixels a side.
      merge: patches a side that one token covers; theirs follow each other.

    Returns:
      `[n, 3 * patch**2]` uint8: a channel, then a row, after the other.

    Raises:
      ValueError: if a side is not a multiple of `patch * merge`.
    """
    width, height = image.size
    side = patch * merge
    if not width or not height or width % side or height % side:
        raise ValueError(f'an image of {width} x {height} pixels: both sides must be multiples '
                         f'of {side}')
    pixels = np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
    blocks = pixels.reshape(height // side, merge, patch, width // side, merge, patch, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * patch**2)


def patch_values(patches: Any, scale: PixelScale, frames: int, xp: Any = np) -> Any:
    """Returns patches as the HF image processor flattens them.

    Args:
      patches: `[..., C * patch**2]` uint8.
      scale: of the bytes.
      frames: how often each channel is repeated, for the patches of a still image.
      xp: numpy, or jax.numpy.

    Returns:
      `[..., C * frames * patch**2]` float32.
    """
    area = patches.shape[-1] // len(scale.mean)
    mean, std = (np.repeat(np.asarray(x, np.float32), area) for x in (scale.mean, scale.std))
    values = (patches.astype(np.float32) * np.float32(scale.factor) - mean) / std
    channels = [values[..., start : start + area] for start in range(0, len(mean), area)]
    return xp.concatenate([x for x in channels for _ in range(frames)], axis=-1)
