"""Lines that an OCR has found on a page: their words, their order, turns and duplicates."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

# A word and its box (x1, y1, x2, y2) in pixels, right and lower edge excluded.
OcrWord = tuple[str, tuple[int, int, int, int]]

_COVERED = 0.5  # Share of a box from which it is that of something known.


@dataclasses.dataclass(frozen=True, eq=False)
class OcrLine:
    """A line of text.

    Attributes:
      text: of the line.
      score: from 0 to 1.
      corners: [4, 2], pixels: upper left, upper right, lower right, lower left of the text.
      words: of the line.
    """

    text: str
    score: float
    corners: np.ndarray
    words: tuple[OcrWord, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        (x1, y1), (x2, y2) = self.corners.min(0), self.corners.max(0)
        return float(x1), float(y1), float(x2), float(y2)

    @property
    def height(self) -> float:
        """Pixels across the line, however it is turned."""
        a, b, c, d = self.corners
        return float(np.linalg.norm(a - d) + np.linalg.norm(b - c)) / 2

    @property
    def length(self) -> float:
        """Pixels along the line."""
        a, b, c, d = self.corners
        return float(np.linalg.norm(b - a) + np.linalg.norm(c - d)) / 2


def make_line(text: str, score: float, corners: Any, pieces: Sequence[tuple[str, float, Any]],
              size: tuple[int, int]) -> OcrLine:
    """Puts together the words of a line, as divided by white space, from recognised pieces.

    Args:
      text: of the line.
      score: of the line.
      corners: of the line, [4, 2], pixels.
      pieces: text, score and corners of parts of it, in order: of words, halves of words or
        characters.
      size: width and height of the image.
    """
    return OcrLine(text, score, np.asarray(corners, float).reshape(4, 2),
                   tuple(line_words(text, corners, pieces, size)))


def line_words(line: str, corners: Any, pieces: Sequence[tuple[str, float, Any]],
               size: tuple[int, int]) -> list[OcrWord]:
    """Returns the words of `make_line`."""
    words: list[OcrWord] = []
    pieces = list(pieces)
    for word in line.split():
        text, points = '', []
        while pieces and len(text) < len(word):
            piece, _, box = pieces.pop(0)
            text += piece
            points.append(np.asarray(box))
        if text != word:  # The pieces are cut otherwise: the line is one word.
            return [(line, _bounds(np.asarray(corners), size))]
        words.append((word, _bounds(np.concatenate(points), size)))
    return words


def _bounds(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    (x1, y1), (x2, y2) = np.floor(points.min(0)), np.ceil(points.max(0))
    return (int(np.clip(x1, 0, size[0] - 1)), int(np.clip(y1, 0, size[1] - 1)),
            int(np.clip(x2, 1, size[0])), int(np.clip(y2, 1, size[1])))


def moved(line: OcrLine, x: int, y: int) -> OcrLine:
    """Returns a line of a crop as one of the image; (x, y) is the crop's upper left corner."""
    words = tuple((word, (x1 + x, y1 + y, x2 + x, y2 + y)) for word, (x1, y1, x2, y2) in line.words)
    return dataclasses.replace(line, corners=line.corners + (x, y), words=words)


def turned_back(line: OcrLine, turns: int, size: tuple[int, int]) -> OcrLine:
    """Returns a line of an image turned by `numpy.rot90` as one of the image.

    Args:
      line: of the turned image.
      turns: quarters, counterclockwise.
      size: width and height of the image as it was.
    """
    def back(points: np.ndarray) -> np.ndarray:
        x, y = points[..., 0], points[..., 1]
        width, height = size
        return np.stack([(x, y), (width - y, x), (width - x, height - y), (y, height - x)][turns],
                        axis=-1)

    words = []
    for word, (x1, y1, x2, y2) in line.words:
        (a, b), (c, d) = back(np.array([(x1, y1), (x2, y2)])).tolist()
        words.append((word, (min(a, c), min(b, d), max(a, c), max(b, d))))
    return dataclasses.replace(line, corners=back(line.corners), words=tuple(words))


def in_reading_order(lines: Sequence[OcrLine]) -> list[OcrLine]:
    """Orders the lines of an upright page by rows, and those of a row from left to right.

    A page that is scanned a few degrees askew is taken straight for it.
    """
    if not lines:
        return []
    along = np.array([line.corners[1] - line.corners[0] for line in lines])
    lengths = np.linalg.norm(along, axis=1)
    angles = np.arctan2(along[:, 1], along[:, 0])
    level = np.abs(angles) < np.pi / 8  # Not labels that run upwards.
    angle = _weighted_median(angles[level], lengths[level]) if level.any() else 0.0
    cos, sin = np.cos(angle), np.sin(angle)
    straight = [line.corners @ np.array([[cos, -sin], [sin, cos]]) for line in lines]
    middles = [float(corners[:, 1].mean()) for corners in straight]
    heights = [float(np.ptp(corners[:, 1])) for corners in straight]
    rows: list[list[int]] = []
    for i in sorted(range(len(lines)), key=lambda i: (middles[i], straight[i][:, 0].min())):
        last = rows[-1][-1] if rows else None
        if last is not None and middles[i] - middles[rows[-1][0]] < 0.5 * min(
                heights[i], heights[rows[-1][0]]):
            rows[-1].append(i)
        else:
            rows.append([i])
    return [lines[i] for row in rows
            for i in sorted(row, key=lambda i: float(straight[i][:, 0].min()))]


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def beside(lines: Sequence[OcrLine], known: Sequence[tuple[float, float, float, float]]
           ) -> list[OcrLine]:
    """Returns what of lines is at none of the boxes that are known, word by word."""
    boxes = np.array(known, float).reshape(-1, 4)
    found = []
    for line in lines:
        words = tuple(word for word in line.words if _in_line(word[1], boxes) < _COVERED)
        if len(words) == len(line.words):
            found.append(line)
        elif words:
            found.append(dataclasses.replace(
                line, text=' '.join(word for word, _ in words), words=words))
    return found


def _in_line(box: tuple[int, int, int, int], boxes: np.ndarray) -> float:
    """Returns the share of a box's width that is in others of its line.

    Boxes of a text layer are as high as the letters of a word, those of an OCR as the line.
    """
    x1, y1, x2, y2 = box
    shared = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
    lower = np.minimum(boxes[:, 3] - boxes[:, 1], y2 - y1)
    width = np.clip(np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1), 0, None)
    return float(width[2 * shared >= lower].sum()) / max(x2 - x1, 1e-9)


def is_known(line: OcrLine, lines: Sequence[OcrLine]) -> bool:
    """Whether a line is at the place of others."""
    return _covered(line.box, np.array([other.box for other in lines]).reshape(-1, 4)) >= _COVERED


def _covered(box: tuple[float, float, float, float], boxes: np.ndarray) -> float:
    """Returns the share of a box that is in others, if they do not overlap each other."""
    x1, y1, x2, y2 = box
    width = np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)
    height = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    return float(shared.sum()) / max((x2 - x1) * (y2 - y1), 1e-9)
