"""Which characters of a PDF page a person sees.

A character is seen where the page looks different without its text: that holds for layers,
clipping, colours, transparency and whatever lies on top, without knowing any of them. What
makes no difference is kept where it is the OCR layer of a scan.
"""

import ctypes
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pypdfium2 import raw

from vrag_jax.corpus.pdf.characters import UNPAINTED, Characters, page_objects
from vrag_jax.corpus.pdf.geometry import Projection

_PIXELS = 300_000  # Of the images that are compared; a letter of 8 points has six rows in them.
_LEAST_SCALE = 0.75  # Of those of large pages, in pixels a point.
_SEEN = 5  # Of 255: a smaller difference of a colour is seen by nobody.
# Of four bytes the first three, in the order of this machine.
_COLOURS = np.array([1, 1, 1, 0], np.uint8).view(np.uint32)
_INK = 24  # Of 255: ink of a scan differs from its paper by more.
_SCAN = 0.5  # Of a page is covered by the images of a scan.
_SHORTEST_GAP = 3  # Characters that are missing in the middle of a word.


class Visibility:
    """Looks at a page with and without its text.

    Args:
      page: pypdfium2's page.
      scale: pixels a point of the page's own image; the comparison has no more.

    Attributes:
      texts: all text objects of the page, as PDFium's handles.
    """

    def __init__(self, page: Any, scale: float):
        self._page = page
        width, height = page.get_size()
        self._own_scale = scale
        self._scale = min(scale, max(_LEAST_SCALE, math.sqrt(_PIXELS / (width * height))))
        self._projection: Projection | None = None
        self.texts: list[Any] = []
        self._images: list[tuple[Any, Sequence[Any]]] = []  # And the forms around them.
        for handle, kind, forms in page_objects(page.raw):
            if kind == raw.FPDF_PAGEOBJ_TEXT:
                self.texts.append(handle)
            elif kind == raw.FPDF_PAGEOBJ_IMAGE:
                self._images.append((handle, forms))
        self._bare: np.ndarray | None = None

    def seen(self, characters: Characters, added: bool = False) -> np.ndarray:
        """Returns (characters,) bool: which of them are seen; blanks are.

        Args:
          characters: of the page.
          added: whether they are those of annotations and form fields, which lie on top of
            the page's own.
        """
        blank = characters.blank
        if blank.all():
            return np.ones(len(blank), bool)
        bare, whole = self._without_text(), self._render(with_added=added)
        windows, inside = self._windows(characters, bare)
        changed = _changed(bare, whole)
        painted = ~np.isin(characters.modes[characters.owners], UNPAINTED)
        differs = inside & ~blank & (_share(changed, windows) > 0)
        seen = painted & differs
        # PDFium reads a text once that is drawn twice: first unseen, and then for all to see.
        twice = differs & ~painted
        if twice.any():
            seen[twice] = _share(_filled(changed.shape, windows[seen]), windows[twice]) < 0.5
        if added:
            return seen | blank
        self._look_through(characters, windows, seen)
        hidden = inside & ~seen & ~blank
        if hidden.any():
            on_scan = self._on_scan(windows, hidden & painted, bare.shape)
            for word in _words(hidden, blank):
                allowed = ~painted[word] | on_scan[word]
                if allowed.any() and _is_ink(bare, windows[word[allowed]]):
                    seen[word[allowed]] = True
        return _without_small_gaps(seen, blank) | blank

    def _render(self, with_added: bool = False) -> np.ndarray:
        """Returns the page, (height, width, 4) uint8; the fourth is no colour."""
        bitmap = self._page.render(
            scale=self._scale, rev_byteorder=True, prefer_bgrx=True, maybe_alpha=False,
            draw_annots=with_added, may_draw_forms=with_added)
        return bitmap.to_numpy()

    def _activate(self, handles: Sequence[Any], active: bool) -> None:
        for handle in handles:
            raw.FPDFPageObj_SetIsActive(handle, active)

    def _without_text(self) -> np.ndarray:
        if self._bare is None:
            self._activate(self.texts, False)
            self._bare = self._render()
            self._activate(self.texts, True)
        return self._bare

    def _windows(self, characters: Characters, image: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels of the characters' boxes, and which of them can be
        seen at all."""
        height, width = image.shape[:2]
        if self._projection is None:
            self._projection = Projection(self._page, (width, height))
        boxes = self._projection.boxes(characters.boxes)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres >= 0) & (centres <= (width, height))).all(1)
        # What is smaller than a pixel of the page's image is a speck to everybody.
        inside &= (boxes[:, 2:] - boxes[:, :2]).max(1) * self._own_scale > self._scale
        boxes = np.where(inside[:, None], boxes, 0)
        low = np.floor(boxes[:, :2])
        high = np.ceil(boxes[:, 2:])
        thin = high - low < 2  # A dash between two rows of pixels is painted in both.
        low, high = np.where(thin, low - 1, low), np.where(thin, high + 1, high)
        limits = np.array([width, height] * 2)
        return np.clip(np.hstack([low, high]), 0, limits).astype(np.int64), inside

    def _look_through(self, characters: Characters, windows: np.ndarray, seen: np.ndarray
                      ) -> None:
        """Clears `seen` of hidden text at the place of other text, which is the one seen."""
        groups = _overlapping(characters.owners, windows, seen)
        if not groups:
            return
        bare = self._without_text()
        listed = {ctypes.addressof(handle.contents) for handle in characters.objects}
        # PDFium reads text once that is drawn twice; the copy may be the one that is seen.
        copies = [handle for handle in self.texts
                  if ctypes.addressof(handle.contents) not in listed]
        self._activate(self.texts, False)
        self._activate(copies, True)
        for group in groups:
            handles = [characters.objects[number] for number in group]
            self._activate(handles, True)
            changed = _changed(bare, self._render())
            self._activate(handles, False)
            own = seen & np.isin(characters.owners, group)
            seen[own] = _share(changed, windows[own]) > 0
        self._activate(self.texts, True)

    def _on_scan(self, windows: np.ndarray, wanted: np.ndarray, shape: tuple[int, ...]
                 ) -> np.ndarray:
        """Returns which characters lie beneath or on an image, if images make up the page."""
        found = np.zeros(len(windows), bool)
        if not wanted.any() or self._projection is None:
            return found
        images = [_image_box(handle, forms) for handle, forms in self._images]
        boxes = self._projection.boxes(np.array(images).reshape(-1, 4))
        covered = _filled(shape, boxes.round().clip(0).astype(np.int64))
        if covered.mean() >= _SCAN:
            found[wanted] = _share(covered, windows[wanted]) > 0.5
        return found


def _changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns where two images differ visibly, (height, width) bool."""
    difference = np.maximum(a, b)
    difference -= np.minimum(a, b)
    return np.squeeze((difference > _SEEN).view(np.uint32) & _COLOURS, 2) > 0


def _filled(shape: tuple[int, ...], windows: np.ndarray) -> np.ndarray:
    """Returns which pixels of an image lie in any window, (height, width) bool."""
    filled = np.zeros(shape[:2], bool)
    for x1, y1, x2, y2 in windows.tolist():
        filled[y1:y2, x1:x2] = True
    return filled


def _share(mask: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Returns how much of each window (x1, y1, x2, y2) the mask fills, 0 to 1."""
    # Counts wrap around where a row has more than 65,535; their differences do not.
    sums = np.zeros((mask.shape[0], mask.shape[1] + 1), np.uint16)
    np.cumsum(mask, 1, dtype=np.uint16, out=sums[:, 1:])
    x1, y1, x2, y2 = windows.T
    heights = np.maximum(y2 - y1, 0)
    ends = np.cumsum(heights)
    which = np.repeat(np.arange(len(windows)), heights)
    rows = np.arange(len(which)) - (ends - heights)[which] + y1[which]
    counts = sums[rows, x2[which]] - sums[rows, x1[which]]
    total = np.bincount(which, counts, len(windows))
    return total / np.maximum((x2 - x1) * heights, 1)


def _overlapping(owners: np.ndarray, windows: np.ndarray, seen: np.ndarray) -> list[list[int]]:
    """Returns groups of objects most of whose characters stand at the place of others.

    No two of a group stand at the same place.
    """
    [indices] = np.nonzero(seen & (owners >= 0))
    if len(indices) < 2:
        return []
    pairs: set[tuple[int, int]] = set()
    covered = np.zeros(len(owners), bool)
    middle = windows[:, 1] + windows[:, 3]
    height = max(int(np.median(windows[indices, 3] - windows[indices, 1])), 1)
    # Lines that a border of the bands cuts in one go are whole in the other.
    for shift in (0, height):
        band = (middle[indices] + shift) // (2 * height)
        order = indices[np.lexsort((windows[indices, 0], band))]
        a, b = order[:-1], order[1:]
        both = (np.minimum(windows[a, 2:], windows[b, 2:])
                - np.maximum(windows[a, :2], windows[b, :2])).clip(0).prod(1)
        areas = np.stack([(windows[i, 2:] - windows[i, :2]).prod(1) for i in (a, b)])
        # A comma below the arm of a Y has a small part of its box.
        same = (both > np.maximum(0.5 * areas.min(0), 0.3 * areas.max(0))) & (
            owners[a] != owners[b])
        covered[a[same]] = covered[b[same]] = True
        pairs |= {(int(min(x)), int(max(x)))
                  for x in zip(owners[a[same]], owners[b[same]], strict=True)}
    # Two letters may be that close: of an `fi`, or where the pair is kerned.
    inner = covered[:-2] & covered[1:-1] & covered[2:]
    long = np.zeros_like(covered)
    for i in range(3):
        long[i:len(long) - 2 + i] |= inner
    covered &= long
    if not covered.any():
        return []
    totals = np.bincount(owners[indices])
    mostly = np.bincount(owners[covered], minlength=len(totals)) > 0.5 * totals
    groups: list[set[int]] = []
    enemies: dict[int, set[int]] = {}
    for x, y in pairs:
        enemies.setdefault(x, set()).add(y)
        enemies.setdefault(y, set()).add(x)
    for number in sorted(number for number in enemies if mostly[number]):
        group = next((group for group in groups if not group & enemies[number]), None)
        if group is None:
            groups.append(group := set())
        group.add(number)
    return [sorted(group) for group in groups]


def _image_box(handle: Any, forms: Sequence[Any]) -> np.ndarray:
    """Returns left, bottom, right and top of an image, in points of its page."""
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], np.float64)
    for item in (handle, *reversed(forms)):
        m = raw.FS_MATRIX()
        if raw.FPDFPageObj_GetMatrix(item, m):
            corners = corners @ np.array([[m.a, m.b, 0], [m.c, m.d, 0], [m.e, m.f, 1]])
    return np.concatenate([corners[:, :2].min(0), corners[:, :2].max(0)])


def _words(wanted: np.ndarray, blank: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of the wanted characters, a run without blanks each."""
    run = np.cumsum(blank)
    [indices] = np.nonzero(wanted)
    return [np.array(list(group)) for _, group in itertools.groupby(indices, run.__getitem__)]


def _is_ink(image: np.ndarray, windows: np.ndarray) -> bool:
    """Whether something is drawn where a word stands: more than a line or an edge."""
    x1, y1 = windows[:, :2].min(0)
    x2, y2 = windows[:, 2:].max(0)
    spare = (y2 - y1) // 4  # Boxes of an OCR may be a little off.
    box = image[max(y1 - spare, 0):y2 + spare, x1:x2, :3].astype(np.int16)
    if not box.size:
        return False
    paper = np.median(box, axis=(0, 1))
    ink = (np.abs(box - paper) > _INK).any(-1)
    return bool(ink.any(1).mean() > 0.3 and ink.any(0).mean() > 0.3)


def _without_small_gaps(seen: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """A dot or a hairline in a word that is seen may make no difference of its own."""
    result = seen.copy()
    [hidden] = np.nonzero(~seen & ~blank)
    starts = hidden[np.r_[True, np.diff(hidden) > 1]] if len(hidden) else hidden
    for start in starts:
        end = start
        while end < len(seen) and not seen[end] and not blank[end]:
            end += 1
        before = start > 0 and seen[start - 1] and not blank[start - 1]
        after = end < len(seen) and seen[end] and not blank[end]
        if end - start < _SHORTEST_GAP and (before or after):
            result[start:end] = True
    return result
