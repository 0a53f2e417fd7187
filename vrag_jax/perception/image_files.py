"""Image files: the one way in for all of them, from any format to upright RGB on white.

Pillow goes by what a file holds, not by its name, and hands EPS to Ghostscript, which runs
programs: only the formats that are named here are opened.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageOps

from vrag_jax.perception.sample_depth import brighten, to_eight_bits, transparent_sample

FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'JPEG2000')
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.tif', '.tiff', '.gif',
                  '.bmp', '.jp2', '.j2k')
MAX_SIDE = 16_383  # Of WebP, the least of all formats.
# What Pillow raises for files that are broken in one way or another.
UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, TypeError, KeyError, IndexError,
              OverflowError, ArithmeticError, AttributeError, struct.error, zlib.error,
              Image.DecompressionBombError)

Source = str | os.PathLike | IO[bytes]


def open_image(source: Source) -> Image.Image:
    """Opens an image of one of `FORMATS`, not decoded yet; a context manager.

    Raises:
      FileNotFoundError: if there is no such file.
      OSError, SyntaxError, ...: one of `UNREADABLE`, if it is no such image.
    """
    return Image.open(source, formats=FORMATS)


def load_image(source: Source) -> Image.Image:
    """Reads an image: its first picture, upright, on white, as 8-bit RGB.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no image that can be read; the message names the file.
    """
    with _naming(source), open_image(source) as image:
        return upright_rgb(image)


def check_image(source: Source) -> None:
    """Raises a ValueError unless it is an image, as far as can be told without decoding it."""
    with _naming(source), open_image(source) as image:
        image.verify()


def upright_size(source: Source) -> tuple[int, int]:
    """Returns width and height of what `load_image` makes of an image, without decoding it."""
    with _naming(source), open_image(source) as image:
        width, height = image.size
        # Pillow says the size of a TIFF as it is shown, of others as they are stored.
        turned = orientation(image) >= 5 and image.format != 'TIFF'
        return (height, width) if turned else (width, height)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image that is not decoded yet; 1 is upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright_rgb(image: Image.Image, max_pixels: int | None = None) -> Image.Image:
    """Returns a picture turned by its EXIF orientation, on white, as 8-bit RGB.

    It is scaled down as early as its mode allows it: what is made of it on the way is small.

    Args:
      image: is turned in place.
      max_pixels: see `limit_pixels`; None leaves the size as it is.
    """
    key = transparent_sample(image)
    ImageOps.exif_transpose(image, in_place=True)
    turned = image
    if turned.mode.startswith(('I', 'F')):
        turned = to_eight_bits(turned, key, lambda large: limit_pixels(large, max_pixels))
    elif turned.mode == '1':
        turned = turned.convert('L')
    elif turned.mode == 'RGB':
        turned = brighten(turned, image)
    if key is not None and turned.mode in ('L', 'RGB'):
        turned.info['transparency'] = key
    if turned.has_transparency_data:
        layer = limit_pixels(_as(turned, 'RGBA'), max_pixels)
        turned = Image.new('RGBA', layer.size, 'white')
        turned.alpha_composite(layer)
    elif turned.mode != 'L':
        turned = _as(turned, 'RGB')
    return _as(limit_pixels(turned, max_pixels), 'RGB')


def limit_pixels(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """Scales an image down, sides in proportion, to so many pixels at most; None leaves it.

    Returns:
      The image itself if it is small enough.
    """
    size = image.size if max_pixels is None else limited(image.size, max_pixels)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def limited(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Returns the size to which an image of a size is scaled down."""
    width, height = size
    scale = min(math.sqrt(max_pixels / (width * height)), MAX_SIDE / max(width, height))
    if scale >= 1:
        return size
    # A side of less than a pixel becomes one; the other is then bounded by itself.
    width, height = (min(max(1, int(side * scale)), max_pixels) for side in (width, height))
    return width, height


def _as(image: Image.Image, mode: str) -> Image.Image:
    """Returns the image in a mode; `convert` would copy one that is in it already."""
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Makes of whatever Pillow raises for an image a ValueError that names its file."""
    name = str(source) if isinstance(source, str | Path) else 'image'
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f'{name}: no such image') from None
    except UNREADABLE as error:
        raise ValueError(f'{name}: cannot be read as an image: {error}') from error
