"""What answers of a service may be while its pages are replaced, what came, and its memory."""

import dataclasses
import threading
import time
from collections import Counter

import numpy as np
from PIL import Image, ImageDraw

BEHIND = 30.0  # Seconds after an update was built from which an old version is wrong.


class Versions:
    """Which versions of each document may be in an answer.

    Args:
      documents: how many; all are of version 1.
    """

    def __init__(self, documents: int):
        self._lock = threading.Lock()
        self._begun = dict.fromkeys(range(documents), 1)
        # Of each version when it was built.
        self._built: dict[tuple[int, int], float] = {(n, 1): 0.0 for n in range(documents)}

    def next(self, documents: list[int]) -> dict[int, int]:
        """Begins new versions, and returns them."""
        with self._lock:
            for document in documents:
                self._begun[document] += 1
            return {document: self._begun[document] for document in documents}

    def built(self, versions: dict[int, int]) -> None:
        """Notes that versions are in the index."""
        with self._lock:
            self._built |= {item: time.monotonic() for item in versions.items()}

    def newest(self, document: int) -> int:
        """Returns the newest version that is in the index."""
        with self._lock:
            version = self._begun[document]
            return version if (document, version) in self._built else version - 1

    def behind(self, document: int, version: int, at: float) -> float:
        """Returns how long the next version was built at a time; inf for one that is none."""
        with self._lock:
            if not 1 <= version <= self._begun[document]:
                return float('inf')
            return max(0.0, at - self._built.get((document, version + 1), at))

    def settled(self, document: int, version: int, at: float) -> bool:
        """Whether a version must be what is found since some time, and is still."""
        with self._lock:
            return self._begun[document] == version and (
                at - self._built.get((document, version), at) > BEHIND)


@dataclasses.dataclass
class Tally:
    """What has come of the requests of all clients.

    Attributes:
      counts: of requests, pictures that were looked at, and each kind of fault.
      faults: the first few of them, in words.
      behind: most seconds that an answer was behind the index.
      seconds: of each request.
    """

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    behind: float = 0.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def count(self, kind: str, fault: str = '') -> None:
        """Counts something; with a fault's words, a fault."""
        with self.lock:
            self.counts[kind] += 1
            if fault and len(self.faults) < 20:
                self.faults.append(f'{kind}: {fault}')


def growth(samples: list[tuple[float, float]]) -> float:
    """Returns how much more memory the last quarter of the time took than the second, in MB."""
    end = samples[-1][0]
    second = [mb for at, mb in samples if end / 4 <= at < end / 2]
    last = [mb for at, mb in samples if at >= 3 * end / 4]
    return float(np.median(last) - np.median(second))


def plot(samples: list[tuple[float, float]], updates: list[float], title: str) -> Image.Image:
    """Draws memory in MB over minutes, and a tick for each update."""
    width, height, left, top, bottom = 900, 360, 70, 40, 50
    image = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(image)
    end, most = samples[-1][0] or 1.0, 1.2 * max(mb for _, mb in samples)

    def at(seconds: float, mb: float) -> tuple[float, float]:
        return (left + (width - left - 20) * seconds / end,
                top + (height - top - bottom) * (1 - mb / most))

    for step in range(5):
        mb = most * step / 4
        draw.line([at(0, mb), at(end, mb)], fill='#ddd')
        draw.text((8, at(0, mb)[1] - 6), f'{mb:.0f} MB', fill='#444')
        left_of_label = min(at(end * step / 4, 0)[0] - 12, width - 55)
        draw.text((left_of_label, height - 25), f'{end * step / 240:.1f} min', fill='#444')
    for seconds in updates:
        x, y = at(seconds, 0)
        draw.line([(x, y), (x, y + 6)], fill='#a33')
    draw.line([at(*sample) for sample in samples], fill='#135', width=2)
    draw.text((left, 12), title, fill='#000')
    return image
