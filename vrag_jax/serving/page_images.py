"""Images of pages for requests: which region, at which size, in which format."""

import dataclasses
import io
import re

from PIL import Image

from vrag_jax.corpus.pages import PageStore
from vrag_jax.perception.frames import Box, Frame
from vrag_jax.perception.image_ops import (
    PixelLimits,
    RegionError,
    crop_and_zoom,
    crop_at_page_size,
    show_page,
)
from vrag_jax.serving.errors import RequestError

_FACTOR = 28  # Sides of a resized image are multiples of it, as the encoder sees them.
FORMATS = {'png': 'image/png', 'jpeg': 'image/jpeg'}
_SAVING = {'png': {'compress_level': 1}, 'jpeg': {'quality': 95, 'subsampling': 0}}


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """What part of a page is wanted, and how.

    Attributes:
      region: box in pixels of the page as it is `frame` pixels wide and high; None is the
        whole page.
      frame: width and height of the image that the region was chosen on; None is the
        page's own size.
      min_pixels, max_pixels: bounds of the area of what is sent, with sides that are
        multiples of 28, as the policy sees it; both None sends the page's own pixels.
      format: a key of `FORMATS`.
    """

    region: Box | None
    frame: tuple[int, int] | None
    min_pixels: int | None
    max_pixels: int | None
    format: str

    @classmethod
    def parse(cls, region: str | None, frame: str | None, min_pixels: int | None,
              max_pixels: int | None, format: str, most: int) -> 'ImageRequest':
        """Reads the fields of a request.

        Args:
          region: 'x1,y1,x2,y2'.
          frame: 'WIDTHxHEIGHT'.
          min_pixels, max_pixels, format: as in the attributes.
          most: area of an image that may be sent.

        Raises:
          RequestError: naming the field.
        """
        box = size = None
        if region is not None:
            box = _parse_box(region)
        if frame is not None:
            found = re.fullmatch(r'(\d{1,6})x(\d{1,6})', frame, re.ASCII)
            size = (int(found[1]), int(found[2])) if found else (0, 0)
            if not min(size):
                raise RequestError(422, 'frame', f"must be WIDTHxHEIGHT, like '560x728', got "
                                                 f'{frame!r}')
            if box is None:
                raise RequestError(422, 'frame', 'says what a region was chosen on, and there '
                                                 'is no region')
        if format not in FORMATS:
            raise RequestError(422, 'format', f'must be one of {sorted(FORMATS)}, got {format!r}')
        for name, value in (('min_pixels', min_pixels), ('max_pixels', max_pixels)):
            if value is not None and not 0 < value <= most:
                raise RequestError(422, name, f'must be in [1, {most}], got {value}')
        request = cls(box, size, min_pixels, max_pixels, format)
        request.limits(most)
        return request

    def limits(self, most: int) -> PixelLimits | None:
        """Returns the bounds of what is sent, None for the page's own pixels."""
        if self.min_pixels is None and self.max_pixels is None:
            return None
        largest = self.max_pixels or most
        try:
            return PixelLimits(self.min_pixels or min(_FACTOR**2, largest), largest, _FACTOR)
        except ValueError as error:
            name = 'min_pixels' if self.max_pixels is None else 'max_pixels'
            raise RequestError(422, name, str(error)) from error


@dataclasses.dataclass(frozen=True)
class PageImage:
    """An encoded image, and the part of the page that it shows.

    Attributes:
      data: the file.
      media_type: of the file.
      frame: what of the page it shows, and its size as `encoder_size`.
    """

    data: bytes
    media_type: str
    frame: Frame


def render(store: PageStore, page_id: str, request: ImageRequest, most: int) -> PageImage:
    """Cuts, resizes and encodes.

    Args:
      store: the pages.
      page_id: one of them.
      request: what is wanted.
      most: area of an image that may be sent.

    Raises:
      RequestError: if there is no such page, the region lies outside it, or what is wanted
        is larger than `most`.
    """
    if page_id not in store:
        raise RequestError(404, 'page_id', f'there is no page {page_id!r}')
    page = store[page_id]
    size = page.width, page.height
    limits = request.limits(most)
    chosen_on = Frame(page_id, size, (0, 0, *size), request.frame or size)
    box = request.region or (0, 0, *chosen_on.encoder_size)
    try:
        if limits is None:
            frame = crop_at_page_size(chosen_on, box)
            if frame.encoder_size[0] * frame.encoder_size[1] > most:
                raise RequestError(422, 'max_pixels', f'{frame.encoder_size[0]} x '
                                   f'{frame.encoder_size[1]} pixels are more than the {most} '
                                   'that are sent: give max_pixels or a region')
            left, top, right, bottom = frame.region
            image = store.image(page_id).crop((left, top, right, bottom))
        elif request.region is None:
            image, frame = show_page(store.image(page_id), page_id, limits)
        else:
            image, frame = crop_and_zoom(store.image(page_id), chosen_on, box, limits)
    except RegionError as error:
        raise RequestError(422, 'region', str(error)) from error
    return PageImage(_encode(image, request.format), FORMATS[request.format], frame)


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **_SAVING[format])
    return buffer.getvalue()


def _parse_box(text: str) -> Box:
    try:
        x1, y1, x2, y2 = map(float, text.split(','))
    except ValueError:
        raise RequestError(422, 'region', "must be four numbers 'x1,y1,x2,y2', got "
                                          f'{text!r}') from None
    return x1, y1, x2, y2
