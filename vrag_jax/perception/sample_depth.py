"""Samples of 12, 16 or 32 bits, and of floating point, as 8 bits: black stays 0, white 255."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffTags

# Greatest values of samples of 1, 8, 10, 12, 14 and 16 bits.
_LEVELS = (1, 255, 1023, 4095, 16_383, 65_535)
_TOLERANCE = 1.01  # Floating-point numbers may lie a little above the white that was meant.
_DARKEST = 16  # Where even the brightest sample is so many times below its level, it is white.
_TIFF = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
_GREY_STEPS = {'1': 255, 'L;2': 85, 'L;4': 17}  # What Pillow makes of a step of few bits.


def transparent_sample(image: Image.Image) -> int | tuple[int, ...] | None:
    """Takes the one value that is transparent out of an image without alpha, as it is decoded.

    Pillow keeps it as the file has it: of samples of 1, 2, 4 and 16 bits another number than
    what they become.

    Args:
      image: not decoded yet; palettes keep what they have.
    """
    if image.mode not in ('1', 'L', 'RGB', 'I;16') or image.format != 'PNG':
        return None
    key = image.info.pop('transparency', None)
    tile = getattr(image, 'tile', ())
    raw = str(tile[0].args) if tile else ''
    if isinstance(key, tuple) and raw.startswith('RGB;16'):
        return tuple(value >> 8 for value in key)
    return key * _GREY_STEPS.get(raw, 1) if isinstance(key, int) else key


def to_eight_bits(image: Image.Image, key: int | tuple[int, ...] | None,
                  limit: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Scales the samples of a grey image to 8 bits.

    White is what the file says (`MaxSampleValue`), else the greatest value of as few bits as
    hold the brightest sample: 12 bits are often kept in 16, and are no dark image of 16. Of
    more than 16 bits, and where samples are negative, the brightest is white and, then, the
    least black.

    Args:
      image: of a mode of integers of more than 8 bits (`I...`) or floating point (`F`).
      key: value of samples that are transparent.
      limit: scales the image down as soon as its range is known.

    Returns:
      An image of mode L; LA if there is a transparent value.
    """
    tags = getattr(image, 'tag_v2', {})
    values = image if image.mode == 'F' else image.convert('F')
    low, high = map(float, values.getextrema())  # type: ignore[arg-type]
    unsigned = _first(tags, 'BitsPerSample') == 32 and _first(tags, 'SampleFormat') in (None, 1)
    wrapped = image.mode == 'I' and unsigned and low < 0
    if wrapped or not np.isfinite([low, high]).all() or image.mode == 'F':
        samples = np.asarray(values)
        if wrapped:  # Pillow takes 32 bits for signed.
            samples = np.where(samples < 0, samples + np.float32(2**32), samples)
        finite = samples[np.isfinite(samples)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        values = Image.fromarray(np.nan_to_num(
            samples, nan=low, posinf=high, neginf=low))
    alpha = None if key is None else Image.fromarray(np.asarray(values) != key).convert('L')
    black, white = _range(low, high, _told(tags))
    factor = 255 / (white - black)
    offset = -black * factor
    if _first(tags, 'PhotometricInterpretation') == 0:  # White is the least, as on film.
        factor, offset = -factor, 255 - offset
    if alpha is None:
        values = limit(values)
    grey = values.point(lambda value: value * factor + (offset + 0.5)).convert('L')
    return grey if alpha is None else Image.merge('LA', (grey, alpha))


def brighten(image: Image.Image, source: Image.Image) -> Image.Image:
    """Scales an RGB image made of a TIFF of fewer bits than it has room for.

    Of samples of 16 bits Pillow keeps the upper 8; of 12 in 16 these are 4.

    Args:
      image: RGB, as it was decoded.
      source: the file.
    """
    bits = getattr(source, 'tag_v2', {}).get(_TIFF['BitsPerSample'], ())
    if set(bits) != {16}:
        return image
    peak = max(high for _, high in image.getextrema())  # type: ignore[misc]
    level = next((level for level in (3, 15, 63) if peak <= level), 255)
    return image if level == 255 or not peak else image.point(lambda v: v * 255 // level)


def _range(low: float, high: float, told: float | None) -> tuple[float, float]:
    """Returns the values that are black and white; they differ."""
    if low < 0:
        return low, high if high > low else low + 1
    if told is not None and told * _TOLERANCE >= high and told > 0:
        return 0.0, told
    level = next((level for level in _LEVELS if high <= level * _TOLERANCE), high)
    return 0.0, float(level if high * _DARKEST >= level or high <= 0 else high)


def _told(tags: Mapping[int, Any]) -> float | None:
    value = _first(tags, 'MaxSampleValue')
    if value is None:
        value = _first(tags, 'SMaxSampleValue')
    return None if value is None else float(value)


def _first(tags: Mapping[int, Any], name: str) -> Any:
    """Returns what a tag says of the first kind of sample, None if it is not there."""
    value = tags.get(_TIFF[name])
    return value[0] if isinstance(value, tuple) and value else value
