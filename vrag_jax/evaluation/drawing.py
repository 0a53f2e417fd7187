"""Draws a trajectory as one picture: pages, chosen boxes, zoomed crops, answer."""

import dataclasses

from PIL import Image, ImageDraw, ImageFont

from vrag_jax.evaluation.text import visible
from vrag_jax.evaluation.trajectory_io import TrajectoryRecord, TurnRecord
from vrag_jax.perception.frames import Box
from vrag_jax.perception.image_files import load_image

PAPER, INK, SOFT, LINE = '#ffffff', '#1b1c1e', '#62656b', '#d9d9d4'
CHOSEN, EVIDENCE, RIGHT, WRONG = '#d9480f', '#0b7285', '#2b7a3d', '#c0342b'
BORDER = 5  # pixels
ENLARGE_BELOW = 300  # pixels; smaller images are enlarged without smoothing


@dataclasses.dataclass(frozen=True)
class DrawingStyle:
    """Sizes in pixels.

    Attributes:
      column: width of a turn.
      margin: around the picture and between turns.
      text: size of the text.
      font: a TrueType file with the glyphs that are needed; '' takes Pillow's
        own font, which has Latin letters only.
    """

    column: int = 380
    margin: int = 40
    text: int = 32
    font: str = ''


def draw_trajectory(
    record: TrajectoryRecord, style: DrawingStyle = DrawingStyle()  # noqa: B008 (immutable)
) -> Image.Image:
    """Draws the turns of a trajectory beside each other.

    Args:
      record: what to draw.
      style: sizes.

    Returns:
      An RGB image: the question on top; a column a turn with its thought, its
      action and the image that it brought, on which later boxes are drawn.
    """
    font, large = _font(style, style.text), _font(style, round(1.25 * style.text))
    step = style.column + style.margin
    width = style.margin + step * len(record.turns)
    line = round(1.4 * style.text)
    title = _wrap(record.question, large, width - 2 * style.margin)
    texts = [_texts(turn, font, style.column) for turn in record.turns]
    pictures = [None if turn.image is None else _picture(record, turn.image, style)
                for turn in record.turns]
    top = style.margin + len(title) * round(1.3 * line) + line // 2
    image_top = top + line * (1 + max(len(lines) for lines, _ in texts)) + line // 2
    # The answer, large, is the lowest thing of a trajectory that saw no image.
    tallest = max([p.height for p in pictures if p is not None], default=2 * line)
    canvas = Image.new('RGB', (width, image_top + tallest + style.margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(title):
        draw.text((style.margin, style.margin + i * round(1.3 * line)), text, INK, large)
    for i, turn in enumerate(record.turns):
        x = style.margin + i * step
        draw.text((x, top), f'{i + 1}  {turn.label}', SOFT, font)
        lines, thought_lines = texts[i]
        for j, text in enumerate(lines):
            draw.text((x, top + line * (j + 1)), text, SOFT if j < thought_lines else INK, font)
        picture = pictures[i]
        if picture is not None:
            canvas.paste(picture, (x, image_top))
        elif turn.kind == 'answer':
            _draw_answer(draw, (x, image_top), record, style)
    return canvas


def _draw_answer(draw: ImageDraw.ImageDraw, at: tuple[int, int], record: TrajectoryRecord,
                 style: DrawingStyle) -> None:
    """Writes the answer large, and whether it is right."""
    colour = RIGHT if record.correct else WRONG
    large = _font(style, 2 * style.text)
    lines = _wrap(record.answer or '', large, style.column)
    draw.multiline_text(at, '\n'.join(lines), colour, large)
    below = at[1] + round(2.8 * style.text) * len(lines)
    verdict = 'right' if record.correct else f'wrong: {record.reference}'
    for i, line in enumerate(_wrap(verdict, _font(style, style.text), style.column)):
        draw.text((at[0], below + round(1.4 * style.text) * i), line, colour,
                  _font(style, style.text))


def _texts(turn: TurnRecord, font, width: int) -> tuple[list[str], int]:
    """Returns the wrapped lines of a turn, and how many of them are its thought."""
    action = turn.text
    if turn.kind != 'invalid' and turn.box is not None:
        action = '[' + ', '.join(f'{v:g}' for v in turn.box) + ']'
    thought = _wrap(turn.thought, font, width)
    # The answer is written large beneath.
    return thought + ([] if turn.kind == 'answer' else _wrap(action, font, width)), len(thought)


def _picture(record: TrajectoryRecord, index: int, style: DrawingStyle) -> Image.Image:
    """Returns an image at the width of a column, with its boxes."""
    image = load_image(record.image_path(index))
    width, height = record.images[index].size  # That of boxes.
    scale = style.column / width
    size = (style.column, max(1, round(height * scale)))
    small = max(image.size) < ENLARGE_BELOW
    picture = image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=LINE)
    for box in record.images[index].evidence:
        _dashed(draw, _scaled(box, scale), EVIDENCE)
    for number, box in record.boxes_on(index):
        _numbered(draw, _scaled(box, scale), number, style)
    return picture


def _numbered(draw: ImageDraw.ImageDraw, box: Box, number: int, style: DrawingStyle) -> None:
    """Draws a chosen box, around its pixels and not on them, and its turn's number."""
    left, upper, right, lower = box
    draw.rectangle((left - BORDER, upper - BORDER, right + BORDER, lower + BORDER),
                   outline=CHOSEN, width=BORDER)
    side = round(1.2 * style.text)
    x, y = left - BORDER, max(0.0, upper - side)
    draw.rectangle((x, y, x + side, y + side), fill=CHOSEN)
    draw.text((x + side / 2, y + side / 2), str(number), PAPER,
              _font(style, round(0.85 * style.text)), anchor='mm')


def _dashed(draw: ImageDraw.ImageDraw, box: Box, colour: str, dash: int = 12) -> None:
    left, upper, right, lower = box
    for start in range(round(left), round(right), 2 * dash):
        for y in (upper, lower):
            draw.line((start, y, min(start + dash, right), y), fill=colour, width=4)
    for start in range(round(upper), round(lower), 2 * dash):
        for x in (left, right):
            draw.line((x, start, x, min(start + dash, lower)), fill=colour, width=4)


def _scaled(box: Box, scale: float) -> Box:
    x1, y1, x2, y2 = (v * scale for v in box)
    return x1, y1, x2, y2


def _wrap(text: str, font, width: int) -> list[str]:
    """Breaks a text into lines that fit; a word that does not fit is broken itself."""
    lines: list[str] = []
    for paragraph in visible(text).splitlines():
        line = ''
        for word in paragraph.split():
            longer = f'{line} {word}'.strip()
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = ''
            for char in word:
                if line and font.getlength(line + char) > width:
                    lines.append(line)
                    line = ''
                line += char
        lines.append(line)
    return lines


def _font(style: DrawingStyle, size: int):
    return ImageFont.truetype(style.font, size) if style.font else ImageFont.load_default(size)
