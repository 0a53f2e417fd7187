"""Draws a page with Pillow and the font that comes with it."""

import functools
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.data.pageworld.config import COLUMNS, PageWorldConfig
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec

_PAPER = (252, 251, 247)
_INK = (0, 0, 0)
_GREY = (150, 150, 150)
_TINTS = ((255, 214, 204), (255, 232, 184), (246, 244, 176), (212, 240, 190), (190, 238, 224),
          (196, 226, 252), (214, 212, 252), (248, 208, 240))
_BARS = ((150, 180, 220), (230, 180, 140), (160, 205, 160))


def render_page(page: PageSpec, config: PageWorldConfig) -> Image.Image:
    """Returns the page as an RGB image of `config.page_size`."""
    image = Image.new('RGB', config.page_size, _PAPER)
    draw = ImageDraw.Draw(image)
    small = ImageFont.load_default(max(6, config.title_height // 3))
    draw.text((8, config.title_height // 3), f'{page.title}  {page.page}', _INK, small)
    for panel in page.panels:
        _draw_panel(image, draw, panel, config)
    return image


def _draw_panel(
    image: Image.Image, draw: ImageDraw.ImageDraw, panel: PanelSpec, config: PageWorldConfig
) -> None:
    x1, y1, x2, y2 = panel.box
    tint = _TINTS[panel.tint % len(_TINTS)]
    pale = tuple(255 - (255 - value) // 3 for value in tint)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), pale, tint)
    draw.rectangle((x1, y1, x2 - 1, y1 + config.header_height - 1), tint)
    _draw_glyph(image, panel.heading, config.heading_height, *_center(panel.heading_box))
    x1, y1, x2, y2 = panel.body_box
    image.paste(_body_paper(panel, config), (x1, y1))
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), None, _GREY)
    # Positions of the values vary a little, from the panel's own facts alone.
    rng = random.Random(f'{panel.body_box}{panel.cells}')
    _BODIES[panel.kind](image, draw, panel, config, rng)


def _body_paper(panel: PanelSpec, config: PageWorldConfig) -> Image.Image:
    """Returns white paper with spots.

    Without them a page that is made smaller keeps enough of its digits to tell
    them apart by the grey of a few pixels.
    """
    width, height = config.body_size
    spot = max(1, round(0.6 * config.digit_height))
    rng = np.random.default_rng([panel.tint, *panel.body_box])
    spots = np.abs(rng.standard_normal((-(-height // spot), -(-width // spot))))
    grey = np.clip(255 - config.grain * spots, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC)


def _draw_text(image, draw, panel, config, rng) -> None:
    """Three spaced digits over a rule."""
    center_x, center_y = _center(panel.body_box)
    center_y += rng.randint(-6, 2)
    for digit, x in zip(panel.cells, _columns(panel, config, rng), strict=True):
        _draw_glyph(image, digit, config.digit_height, x, center_y)
    y = center_y + config.digit_height
    half = config.cell_pitch + config.digit_height // 2
    draw.line((center_x - half, y, center_x + half, y), _GREY)


def _draw_table(image, draw, panel, config, rng) -> None:
    """A grid of one row under the column names."""
    x1, y1, x2, y2 = panel.body_box
    columns = _columns(panel, config, rng)
    rule = y1 + config.digit_height + rng.randint(0, 3)
    draw.line((x1 + 3, rule, x2 - 4, rule), _GREY)
    for left, right in zip(columns, columns[1:], strict=False):
        draw.line(((left + right) // 2, y1 + 3, (left + right) // 2, y2 - 4), _GREY)
    for name, digit, x in zip(COLUMNS, panel.cells, columns, strict=True):
        _draw_name(image, name, config, x, (y1 + rule) // 2 + 1)
        _draw_glyph(image, digit, config.digit_height, x, (rule + y2) // 2)


def _draw_chart(image, draw, panel, config, rng) -> None:
    """Bars proportional to their values, each value over its bar.

    Every chart has a scale of its own, so that the height of a bar, which can be
    seen without a crop, does not tell its value.
    """
    _, y1, _, y2 = panel.body_box
    name_height = 2 * config.digit_height // 3
    base = y2 - name_height - 5
    unit = rng.uniform(0.4, 1) * (base - y1 - config.digit_height - 7) / 9
    half = config.digit_height // 2
    for name, digit, x, color in zip(
            COLUMNS, panel.cells, _columns(panel, config, rng), _BARS, strict=True):
        top = base - round(unit * int(digit))
        draw.rectangle((x - half, top, x + half, base), color)
        _draw_glyph(image, digit, config.digit_height, x, top - 2 - config.digit_height // 2)
        _draw_name(image, name, config, x, base + 1 + name_height // 2)


def _draw_pointer(image, draw, panel, config, rng) -> None:
    """An arrow head and the heading it names."""
    center_x, center_y = _center(panel.body_box)
    center_x += rng.randint(-6, 6)
    center_y += rng.randint(-4, 4)
    size = config.digit_height // 2
    x = center_x - config.cell_pitch // 2
    draw.line([(x - size, center_y - size), (x, center_y), (x - size, center_y + size)], _INK, 2)
    _draw_glyph(image, panel.cells[1], round(1.3 * config.digit_height),
                center_x + config.cell_pitch // 3, center_y)


_BODIES = {'text': _draw_text, 'table': _draw_table, 'chart': _draw_chart,
           'pointer': _draw_pointer}


def _center(box: tuple[int, int, int, int]) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _columns(panel: PanelSpec, config: PageWorldConfig, rng: random.Random) -> list[int]:
    center_x, _ = _center(panel.body_box)
    room = (config.body_size[0] - 2 * config.cell_pitch - config.digit_height) // 2 - 1
    most = max(0, min(3, room))
    shift = rng.randint(-most, most)
    return [center_x + shift + offset * config.cell_pitch for offset in (-1, 0, 1)]


def _draw_name(image: Image.Image, name: str, config: PageWorldConfig, x: int, y: int) -> None:
    _draw_glyph(image, name, 2 * config.digit_height // 3, x, y)


def _draw_glyph(image: Image.Image, character: str, height: int, x: int, y: int) -> None:
    """Draws a character whose capitals are `height` high, its ink centred on a point."""
    mask = _glyph(character, height)
    image.paste(_INK, (x - mask.width // 2, y - mask.height // 2), mask)


@functools.cache
def _glyph(character: str, height: int) -> Image.Image:
    """Returns the ink of a character, cut out, as an 8-bit mask."""
    font = _font(height)
    left, top, right, bottom = (round(v) for v in font.getbbox(character))
    mask = Image.new('L', (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), character, 255, font)
    return mask.crop(mask.getbbox())


@functools.cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    """Returns the font at which a capital H has exactly or just over `height` pixels."""
    for size in range(height, 3 * height):
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError('Pillow was built without FreeType, which draws the pages')
        _, top, _, bottom = font.getbbox('H')
        if bottom - top >= height:
            return font
    raise ValueError(f'no font size gives capitals of {height} pixels')
