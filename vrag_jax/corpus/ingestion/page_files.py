"""Images of pages: read upright from any format, bounded in size, written once."""

import os
import warnings
from pathlib import Path

from PIL import Image

from vrag_jax.perception.image_files import (
    MAX_SIDE,
    UNREADABLE,
    limited,
    open_image,
    orientation,
    upright_rgb,
)

_PILLOW_FORMATS = {'jpeg': 'JPEG', 'webp': 'WEBP', 'png': 'PNG'}
_SUFFIXES = {'jpeg': '.jpg', 'webp': '.webp', 'png': '.png'}
_KEPT_SUFFIXES = {'JPEG': '.jpg', 'WEBP': '.webp', 'PNG': '.png'}
MAX_PIXELS = 1_000_000_000  # Of an image file; some KB of PNG may claim to be any number.
# Times `max_pixels` up to which an original stays as it is: slides of 5334 x 3000 are some
# pixels above 16 million, and what is encoded anew loses more than is won.
_KEPT_TIMES = 2.5


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
        with open_image(file) as image:
            return getattr(image, 'n_frames', 1)
    except UNREADABLE as error:
        raise ValueError(f'cannot be read as an image: {error}') from error


def store_image(file: Path, frame: int, target: Path, image_format: str, quality: int,
                max_pixels: int) -> tuple[Path, tuple[int, int]]:
    """Writes a picture of an image file as the image of a page.

    A file that is upright, opaque, of one frame and of at most two and a half times
    `max_pixels` is copied byte for byte if it is a JPEG, PNG or WebP; anything else is turned
    by its EXIF orientation, laid on white, scaled down to `max_pixels` and encoded anew.

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
        with open_image(file) as image:
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
                image.draft(None, limited(image.size, max_pixels))
                upright = upright_rgb(image, max_pixels)
    except UNREADABLE as error:
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


def _can_be_kept(image: Image.Image, max_pixels: int) -> bool:
    return (image.format in _KEPT_SUFFIXES and image.mode in ('RGB', 'L', 'P', '1')
            and not image.has_transparency_data and getattr(image, 'n_frames', 1) == 1
            and orientation(image) == 1 and max(image.size) <= MAX_SIDE
            and image.width * image.height <= _KEPT_TIMES * max_pixels)


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(f'{file.name}.partial')
    partial.write_bytes(content)
    os.replace(partial, file)
