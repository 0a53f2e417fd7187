"""Which characters of a PDF page a person sees.

A character is seen where the page looks different without its text: that holds for layers,
clipping, colours, transparency and whatever lies on top, without knowing any of them. What
makes no difference is kept where it is the OCR layer of a scan.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pypdfium2 import raw

from vrag_jax.ingestion.pdf_characters import Characters, page_objects
from vrag_jax.ingestion.pdf_geometry import Projection

_PIXELS = 500_000  # Small pages are compared at this size, others at 72 dpi.
_SEEN = 5  # Of 255: a smaller difference of a colour is seen by nobody.
_INK = 24  # Of 255: ink of a scan differs from its paper by more.
_UNPAINTED = (3, 7)  # Rendering modes: neither filled nor stroked.
_SCAN = 0.5  # Of a page is covered by the images of a scan.
_SHORTEST_GAP = 3  # Characters that are missing in the middle of a word.


class Visibility:
    """Looks at a page with and without its text.

    Args:
      page: pypdfium2's page.
      scale: pixels a point of the page's own image; the comparison has no more.
    """

    def __init__(self, page: Any, scale: float):
        self._page = page
        width, height = page.get_size()
        self._scale = min(scale, max(1.0, math.sqrt(_PIXELS / (width * height))))
        self._projection: Projection | None = None
        self._objects = list(page_objects(page.raw))
        self._texts = [handle for handle, kind, _ in self._objects
                       if kind == raw.FPDF_PAGEOBJ_TEXT]
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
        changed = _difference(bare, whole) > _SEEN
        painted = ~np.isin(characters.modes[characters.owners], _UNPAINTED)
        seen = painted & inside & ~blank & _any(changed, windows)
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
        """Returns the page, (height, width, 3) uint8."""
        bitmap = self._page.render(
            scale=self._scale, rev_byteorder=True, prefer_bgrx=True, maybe_alpha=False,
            draw_annots=with_added, may_draw_forms=with_added)
        return bitmap.to_numpy()[..., :3]

    def _activate(self, handles: Sequence[Any], active: bool) -> None:
        for handle in handles:
            raw.FPDFPageObj_SetIsActive(handle, active)

    def _without_text(self) -> np.ndarray:
        if self._bare is None:
            self._activate(self._texts, False)
            self._bare = self._render()
            self._activate(self._texts, True)
        return self._bare

    def _windows(self, characters: Characters, image: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels of the characters' boxes, and which of them lie on the page."""
        height, width = image.shape[:2]
        if self._projection is None:
            self._projection = Projection(self._page, (width, height))
        boxes = self._projection.boxes(characters.boxes)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres >= 0) & (centres <= (width, height))).all(1)
        boxes = np.where(inside[:, None], boxes, 0)
        low = np.floor(boxes[:, :2])
        high = np.maximum(np.ceil(boxes[:, 2:]), low + 1)
        limits = np.array([width, height] * 2)
        return np.clip(np.hstack([low, high]), 0, limits).astype(np.int64), inside

    def _look_through(self, characters: Characters, windows: np.ndarray, seen: np.ndarray
                      ) -> None:
        """Clears `seen` of hidden text at the place of other text, which is the one seen."""
        groups = _overlapping(characters.owners, windows, seen)
        if not groups:
            return
        bare = self._without_text()
        self._activate(self._texts, False)
        for group in groups:
            handles = [characters.objects[number] for number in group]
            self._activate(handles, True)
            changed = _difference(bare, self._render()) > _SEEN
            self._activate(handles, False)
            own = seen & np.isin(characters.owners, group)
            seen[own] = _any(changed, windows[own])
        self._activate(self._texts, True)

    def _on_scan(self, windows: np.ndarray, wanted: np.ndarray, shape: tuple[int, ...]
                 ) -> np.ndarray:
        """Returns which characters lie beneath or on an image, if images make up the page."""
        found = np.zeros(len(windows), bool)
        if not wanted.any() or self._projection is None:
            return found
        covered = np.zeros(shape[:2], bool)
        for handle, kind, forms in self._objects:
            if kind == raw.FPDF_PAGEOBJ_IMAGE:
                x1, y1, x2, y2 = self._projection.boxes(_image_box(handle, forms)[None])[0]
                covered[max(round(y1), 0):max(round(y2), 0), max(round(x1), 0):max(round(x2), 0)
                        ] = True
        if covered.mean() >= _SCAN:
            found[wanted] = _any(covered, windows[wanted])
        return found


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the largest difference of the colours, (height, width) uint8."""
    difference = np.maximum(a, b) - np.minimum(a, b)
    return np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2])


def _any(mask: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Returns for each window (x1, y1, x2, y2) whether the mask is set anywhere in it."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(mask, 0, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], 1, out=sums[1:, 1:])
    x1, y1, x2, y2 = windows.T
    return sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1] > 0


def _overlapping(owners: np.ndarray, windows: np.ndarray, seen: np.ndarray) -> list[list[int]]:
    """Returns groups of objects whose characters stand at the place of those of others.

    No two of a group stand at the same place.
    """
    [indices] = np.nonzero(seen & (owners >= 0))
    if len(indices) < 2:
        return []
    pairs: set[tuple[int, int]] = set()
    middle = windows[:, 1] + windows[:, 3]
    height = max(int(np.median(windows[indices, 3] - windows[indices, 1])), 1)
    # Lines that a border of the bands cuts in one go are whole in the other.
    for shift in (0, height):
        band = (middle[indices] + shift) // (2 * height)
        order = indices[np.lexsort((windows[indices, 0], band))]
        a, b = order[:-1], order[1:]
        both = (np.minimum(windows[a, 2:], windows[b, 2:])
                - np.maximum(windows[a, :2], windows[b, :2])).clip(0).prod(1)
        area = np.minimum((windows[a, 2:] - windows[a, :2]).prod(1),
                          (windows[b, 2:] - windows[b, :2]).prod(1))
        same = (both > 0.5 * area) & (owners[a] != owners[b])
        pairs |= {(int(min(x)), int(max(x)))
                  for x in zip(owners[a[same]], owners[b[same]], strict=True)}
    groups: list[set[int]] = []
    enemies: dict[int, set[int]] = {}
    for x, y in pairs:
        enemies.setdefault(x, set()).add(y)
        enemies.setdefault(y, set()).add(x)
    for number in sorted(enemies):
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
    box = image[max(y1 - spare, 0):y2 + spare, x1:x2].astype(np.int16)
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
