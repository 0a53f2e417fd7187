"""Images of pages: read upright from any format, bounded in size, written once."""

import math
import os
import struct
import warnings
import zlib
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

_PILLOW_FORMATS = {'jpeg': 'JPEG', 'webp': 'WEBP', 'png': 'PNG'}
_SUFFIXES = {'jpeg': '.jpg', 'webp': '.webp', 'png': '.png'}
_KEPT_SUFFIXES = {'JPEG': '.jpg', 'WEBP': '.webp', 'PNG': '.png'}
_MAX_SIDE = 16_383  # Of WebP, the least of all formats.
MAX_PIXELS = 1_000_000_000  # Of an image file; some KB of PNG may claim to be any number.
# What Pillow raises for files that are broken in one way or another.
_UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, TypeError, KeyError, IndexError,
               OverflowError, ArithmeticError, AttributeError, struct.error, zlib.error,
               Image.DecompressionBombError)


def allow_large_images() -> None:
    """Lets this process open images of up to `MAX_PIXELS`, where Pillow refuses a fifth of it."""
    # Pillow warns of more than its limit, and refuses more than twice as much.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)


def count_frames(file: Path) -> int:
    """Returns the number of pictures in an image file.

    Raises:
      ValueError: if it is no image that can be read.
    """
    try:
        with Image.open(file) as image:
            return getattr(image, 'n_frames', 1)
    except _UNREADABLE as error:
        raise ValueError(f'cannot be read as an image: {error}') from error


def store_image(file: Path, frame: int, target: Path, image_format: str, quality: int,
                max_pixels: int) -> tuple[Path, tuple[int, int]]:
    """Writes a picture of an image file as the image of a page.

    A file that is upright, opaque, of one frame and not too large is copied byte for byte
    if it is a JPEG, PNG or WebP; anything else is turned by its EXIF orientation, laid on
    white, scaled down and encoded anew.

    Args:
      file: the image file.
      frame: which picture of it, from 0.
      target: where to, without suffix.
      image_format, quality, max_pixels: see `IngestConfig`.

    Returns:
      The file written, and its width and height.

    Raises:
      ValueError: if it cannot be read, or has more than `MAX_PIXELS`.
      OSError: if the image of the page cannot be written.
    """
    try:
        with Image.open(file) as image:
            image.seek(frame)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f'its {image.width} x {image.height} pixels are more than '
                                 f'{MAX_PIXELS}')
            if _can_be_kept(image, max_pixels):
                image.load()  # A truncated file is found now.
                suffix, content = _KEPT_SUFFIXES[image.format or ''], file.read_bytes()
                size, upright = image.size, None
            else:
                # A JPEG can be decoded at a half, a quarter or an eighth of its sides.
                image.draft(None, _limited(image.size, max_pixels))
                upright = upright_rgb(image, max_pixels)
    except _UNREADABLE as error:
        raise ValueError(f'cannot be read as an image: {error}') from error
    if upright is not None:
        return encode_image(upright, target, image_format, quality), upright.size
    written = target.with_name(target.name + suffix)
    _replace(written, content)
    return written, size


def encode_image(image: Image.Image, target: Path, image_format: str, quality: int) -> Path:
    """Writes an image, complete or not at all, and returns the file.

    Args:
      image: RGB or RGBX.
      target: where to, without suffix.
      image_format, quality: see `IngestConfig`.
    """
    file = target.with_name(target.name + _SUFFIXES[image_format])
    partial = file.with_name(f'{file.name}.partial')
    options: dict[str, int] = {} if image_format == 'png' else {'quality': quality}
    if image_format == 'jpeg':
        options['subsampling'] = 0  # Colour at half resolution blurs coloured text.
    elif image.mode == 'RGBX':
        image = image.convert('RGB')
    image.save(partial, _PILLOW_FORMATS[image_format], **options)
    os.replace(partial, file)
    return file


def upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Returns a picture turned by its EXIF orientation, on white, as 8-bit RGB.

    It is scaled down to `max_pixels` as early as its mode allows it: what is made of it on the
    way is small.

    Args:
      image: is turned in place.
      max_pixels: see `limit_pixels`.
    """
    ImageOps.exif_transpose(image, in_place=True)
    turned = image
    if turned.mode == 'F':
        raise ValueError('its pixels are floating-point numbers, of unknown range')
    if turned.mode.startswith('I'):
        # 16-bit scans: `convert` would cut off, not scale, what is above 255.
        turned = limit_pixels(turned.convert('F'), max_pixels)
        turned = turned.point(lambda value: value * (1 / 257) + 0).convert('L')
    elif turned.mode == '1':
        turned = turned.convert('L')
    if turned.has_transparency_data:
        layer = limit_pixels(_as(turned, 'RGBA'), max_pixels)
        turned = Image.new('RGBA', layer.size, 'white')
        turned.alpha_composite(layer)
    elif turned.mode != 'L':
        turned = _as(turned, 'RGB')
    return limit_pixels(turned, max_pixels).convert('RGB')


def _as(image: Image.Image, mode: str) -> Image.Image:
    """Returns the image in a mode; `convert` would copy one that is in it already."""
    return image if image.mode == mode else image.convert(mode)


def limit_pixels(image: Image.Image, max_pixels: int) -> Image.Image:
    """Scales an image down, sides in proportion, to so many pixels at most.

    Returns:
      The image itself if it is small enough.
    """
    size = _limited(image.size, max_pixels)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _limited(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    width, height = size
    scale = min(math.sqrt(max_pixels / (width * height)), _MAX_SIDE / max(width, height))
    if scale >= 1:
        return size
    # A side of less than a pixel becomes one; the other is then bounded by itself.
    width, height = (min(max(1, int(side * scale)), max_pixels) for side in (width, height))
    return width, height


def _can_be_kept(image: Image.Image, max_pixels: int) -> bool:
    return (image.format in _KEPT_SUFFIXES and image.mode in ('RGB', 'L', 'P', '1')
            and not image.has_transparency_data and getattr(image, 'n_frames', 1) == 1
            and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            and image.width * image.height <= max_pixels and max(image.size) <= _MAX_SIDE)


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(f'{file.name}.partial')
    partial.write_bytes(content)
    os.replace(partial, file)
