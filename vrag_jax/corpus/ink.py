"""Finds ink that no word box covers: text in a scan, a chart, a screenshot.

Found by what letters look like in any script, not read: blots of a few points' height on an
even ground that stand in rows. Photographs have blots, too, but no even ground.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

_PIXELS = 600_000  # About 75 dpi of a page; small print is three pixels high.
_CONTRAST = 36  # Grey levels between a letter and what is around it.
_HEIGHTS = 3, 48  # Pixels of a letter.
_GAP = 9  # Pixels between letters and words of a row.
_DEVIATION = 14.0  # Grey levels of an even ground, with what JPEG adds.
_ROW = 8.0  # Letters in a row, at least.

FEWEST = 20  # Letters that a page must show beside its text layer to be worth a reading,
FEWEST_BESIDE = 40, 200  # and where that has as many characters as the second.

Box = tuple[int, int, int, int]


def shows_more(image: Image.Image, text: str, boxes: Sequence[Box]) -> bool:
    """Whether a page shows text that is not in its text layer, of which the boxes are given."""
    fewest = FEWEST if len(text) < FEWEST_BESIDE[1] else FEWEST_BESIDE[0]
    return sum(letters for _, letters in unread_rows(image, boxes, turned=True)) >= fewest


def unread_rows(image: Image.Image, boxes: Sequence[Box], pixels: int = _PIXELS,
                turned: bool = False) -> list[tuple[Box, float]]:
    """Finds rows of what looks like letters and is in no box.

    Args:
      image: of the page.
      boxes: (x1, y1, x2, y2) of the words that are known, in pixels.
      pixels: to which the image is scaled down; letters are to be 3 to 48 high then.
      turned: whether rows may run upwards, too, where few are found across.

    Returns:
      Their boxes in pixels of the image, and how many letters each may hold.
    """
    step = max(1, round((image.width * image.height / pixels) ** 0.5))
    grey = np.asarray(image.convert('L').reduce(step), np.float32)
    rows = _rows(grey, boxes, step)
    if turned and sum(letters for _, letters in rows) < FEWEST:
        across = [(y1, x1, y2, x2) for x1, y1, x2, y2 in boxes]
        rows += [((y1, x1, y2, x2), letters)
                 for (x1, y1, x2, y2), letters in _rows(grey.T, across, step)]
    return [((x1 * step, y1 * step, min(x2 * step, image.width), min(y2 * step, image.height)),
             letters) for (x1, y1, x2, y2), letters in rows]


def _rows(grey: np.ndarray, boxes: Sequence[Box], step: int) -> list[tuple[Box, float]]:
    ground = ndimage.uniform_filter(grey, 21, mode='nearest')
    ink = np.abs(grey - ground) > _CONTRAST
    for x1, y1, x2, y2 in boxes:
        margin = 3 + (y2 - y1) // (4 * step)  # What underlines it is of the word, too.
        ink[max(y1 // step - margin, 0):-(-y2 // step) + margin,
            max(x1 // step - 3, 0):-(-x2 // step) + 3] = False
    if ink.sum() < 50:
        return []
    labels, count = ndimage.label(ink, np.ones((3, 3)))
    slices = ndimage.find_objects(labels)
    heights = np.array([s[0].stop - s[0].start for s in slices])
    widths = np.array([s[1].stop - s[1].start for s in slices])
    low, high = _HEIGHTS
    letters = (heights >= low) & (heights <= high) & (widths <= 12 * heights)
    if not letters.any():
        return []
    kept = np.concatenate([[False], letters])[labels]
    smeared = ndimage.maximum_filter1d(kept, _GAP, axis=1)
    lines, _ = ndimage.label(smeared)
    owner = np.zeros(count + 1, np.int64)
    owner[labels[kept]] = lines[kept]
    found = []
    members: dict[int, list[int]] = {}
    for index in np.flatnonzero(letters):
        members.setdefault(int(owner[index + 1]), []).append(int(index))
    spans = ndimage.find_objects(lines)
    for line, indices in members.items():
        down, across = spans[line - 1]
        height = float(np.median(heights[indices]))
        width = across.stop - across.start - _GAP + 1
        guess = width / (0.6 * height)
        if len(indices) < 2 or guess < _ROW or down.stop - down.start > 3 * height + 4:
            continue
        patch, inside = grey[down, across], ink[down, across]
        share = inside.mean()
        around = patch[~ndimage.binary_dilation(inside)]
        if not 0.06 < share < 0.65 or around.size < 8 or around.std() > _DEVIATION:
            continue
        found.append(((max(across.start, 0), down.start, across.stop, down.stop), guess))
    return found
