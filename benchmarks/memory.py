"""Memory of this process while something runs: its own, and that of files it has mapped."""

import threading
from pathlib import Path

_STATUS = Path('/proc/self/status')
_RESET = Path('/proc/self/clear_refs')
_INTERVAL = 0.005  # Seconds.


def resident() -> dict[str, int]:
    """Returns this process's memory in bytes.

    Returns:
      'anon' is its own (arrays, heap); 'file' are the pages of mapped files, which the
      system takes back when it needs them; 'rss' is their sum; 'peak_rss' its greatest
      value since the process began or `Peak` was entered.
    """
    names = {'RssAnon': 'anon', 'RssFile': 'file', 'VmRSS': 'rss', 'VmHWM': 'peak_rss'}
    found = {}
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name in names:
            found[names[name]] = int(value.split()[0]) * 1024
    return found


class Peak:
    """The most memory that a block of code takes; a context manager, on Linux.

    The kernel keeps the peak of the sum. Of its parts it does not, so they are looked at
    every few milliseconds: a peak that is shorter may be missed in these.

    Attributes:
      before: `resident` when the block began.
      rss, anon, file: greatest values in the block, in bytes.
    """

    def __enter__(self) -> 'Peak':
        _RESET.write_text('5')  # The kernel's peak starts again from what is there now.
        self.before = resident()
        self.rss, self.anon, self.file = (self.before[name] for name in ('rss', 'anon', 'file'))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        now = resident()
        self.rss = max(self.rss, now['peak_rss'])
        self.anon = max(self.anon, now['anon'])
        self.file = max(self.file, now['file'])

    def grown(self) -> dict[str, float]:
        """Returns by how many gigabytes each went above what it was before."""
        return {name: round((getattr(self, name) - self.before[name]) / 1e9, 4)
                for name in ('rss', 'anon', 'file')}
