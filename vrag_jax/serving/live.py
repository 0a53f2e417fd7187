"""Hot reload: pages and index are replaced on disk while requests keep running."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from vrag_jax.corpus.leases import Lease
from vrag_jax.corpus.pages import PageStore
from vrag_jax.retrieval.engine import SearchEngine

_LOG = logging.getLogger(__name__)
_KEPT = 256  # Leases at most: each is an open file.

Signature = tuple[tuple[int, int, int] | None, ...]


@dataclasses.dataclass(frozen=True)
class Version:
    """Pages and the index over them; of one version both.

    Attributes:
      store: the pages.
      engine: search over exactly these.
      name: short digest of what was said of the pages; clients can tell versions apart.
    """

    store: PageStore
    engine: SearchEngine
    name: str

    @functools.cached_property
    def json_heads(self) -> dict[str, str]:
        """What a hit of each page is in JSON, up to its score: the same for every search."""
        return {page.page_id: json.dumps(
            {'page_id': page.page_id, 'document': page.document, 'page': page.page, 'score': 0},
            ensure_ascii=False, separators=(',', ':')).removesuffix('0}') for page in self.store}


class LiveIndex:
    """The newest version of pages and index; a new one comes in when files are replaced.

    Whoever has taken a version keeps it until done, also after it was replaced; so no
    request meets pages of one version and an index of another.

    Args:
      load: opens the pages and their index.
      watched: files that are replaced when there is a new version, such as manifests.
      keep_seconds: that images of a replaced version stay on disk, for clients that were told
        of their files and open them themselves; of 256 versions at most.

    Attributes:
      reloads: how often a new version came in.
      failures: how often one could not be opened.
      behind: whether that is so of the last, e.g. while its index is not there yet.
    """

    def __init__(self, load: Callable[[], tuple[PageStore, SearchEngine]],
                 watched: Sequence[Path], keep_seconds: float = 0.0):
        self._load = load
        self._keep_seconds = keep_seconds
        self._kept: deque[tuple[float, Lease]] = deque(maxlen=_KEPT)
        self._watched = tuple(watched)
        self._lock = threading.Lock()
        self._seen = self._signature()
        self.reloads = 0
        self.failures = 0
        self.behind = False
        self._current = self._open()

    @property
    def current(self) -> Version:
        """The newest version."""
        return self._current

    def refresh(self) -> bool:
        """Opens what is on disk if a watched file was replaced since the last look.

        What cannot be opened (half of it is not there yet, or it is damaged) is logged
        and counted in `failures`; the old version stays until files are replaced again.

        Returns:
          Whether there is a new version.
        """
        with self._lock:
            while self._kept and self._kept[0][0] < time.monotonic():
                self._kept.popleft()
            found = self._signature()
            if found == self._seen:
                return False
            # Of before the opening: what is replaced meanwhile is seen at the next look.
            self._seen = found
            try:
                version = self._open()
            except (OSError, ValueError) as error:
                self.failures += 1
                self.behind = True
                _LOG.warning('the new index is not used: %s', error)
                return False
            lease = self._current.store.lease
            if lease is not None and self._keep_seconds:
                self._kept.append((time.monotonic() + self._keep_seconds, lease))
            self._current, self.behind = version, False
            self.reloads += 1
            _LOG.info('new index: %d pages, version %s', len(version.store), version.name)
            return True

    def _open(self) -> Version:
        store, engine = self._load()
        # The same pages may be indexed anew, so the files' own identity is a part.
        digest = hashlib.sha256(f'{store.fingerprint} {self._seen}'.encode())
        return Version(store, engine, digest.hexdigest()[:16])

    def _signature(self) -> Signature:
        return tuple(_identity(path) for path in self._watched)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What differs after a file was replaced; None if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None
