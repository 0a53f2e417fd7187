"""Hits of a query: as pages and scores, and packed into 12 bytes each, as caches keep them."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

_SCORE, _NUMBER = 8, 4  # Bytes of a hit: its score, float64; the number of its page, int32.
# Of an entry of a cache beside its hits: key, two objects and their places in the mapping.
_ENTRY_BYTES = 256


class Hit(NamedTuple):  # Of which a search makes many: a dataclass takes four times as long.
    """A page that a search found, and its score: larger is better."""

    page_id: str
    score: float


class PackedHits(Sequence[Hit]):
    """Hits that take 12 bytes each until they are looked at; immutable.

    Args:
      ids: ids of all pages.
      data: scores of the pages that were found, float64, then their numbers, int32.
    """

    __slots__ = ('_ids', 'data')

    def __init__(self, ids: Sequence[str], data: bytes = b''):
        self._ids = ids
        self.data = data

    @classmethod
    def pack(cls, ids: Sequence[str], numbers: Mapping[str, int], found: Sequence[str],
             scores: np.ndarray) -> 'PackedHits':
        """Packs what a retriever has found.

        Args:
          ids: ids of all pages.
          numbers: place of each id in `ids`.
          found: ids of hits, best first.
          scores: of the hits, any float.
        """
        return cls(ids, np.asarray(scores, np.float64).tobytes()
                   + np.array([numbers[page_id] for page_id in found], np.int32).tobytes())

    def __len__(self) -> int:
        return len(self.data) // (_NUMBER + _SCORE)

    def __iter__(self) -> Iterator[Hit]:
        ids, count = self._ids, len(self)
        scores = np.frombuffer(self.data, np.float64, count).tolist()
        numbers = np.frombuffer(self.data, np.int32, count, count * _SCORE).tolist()
        return map(Hit, [ids[number] for number in numbers], scores)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Hit]: ...

    def __getitem__(self, place: int | slice) -> Hit | Sequence[Hit]:
        return list(self)[place]


class HitCache:
    """Hits of the queries that were asked last, in so many bytes; safe to use from many threads.

    Args:
      ids: ids of all pages.
      capacity: bytes at most, of hits and of what keeping them takes.
    """

    def __init__(self, ids: Sequence[str], capacity: int):
        self._ids = ids
        self._capacity = capacity
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.size = 0

    def get(self, queries: Sequence[str], k: int, wanted: Any) -> dict[str, PackedHits | None]:
        """Returns the hits of each query that are known, None for others."""
        keys = _keys(queries, k, wanted)
        with self._lock:
            found = {query: self._entries.get(key) for query, key in keys.items()}
            for query, key in keys.items():
                if found[query] is not None:
                    self._entries.move_to_end(key)
        return {query: None if data is None else PackedHits(self._ids, data)
                for query, data in found.items()}

    def put(self, found: Mapping[str, PackedHits], k: int, wanted: Any) -> None:
        """Keeps the hits of queries, and forgets those that nobody has asked for longest."""
        keys = _keys(found, k, wanted)
        with self._lock:
            for query, hits in found.items():
                old = self._entries.pop(keys[query], None)
                self._entries[keys[query]] = hits.data
                self.size += len(hits.data) + _ENTRY_BYTES
                if old is not None:
                    self.size -= len(old) + _ENTRY_BYTES
            while self.size > self._capacity:
                _, data = self._entries.popitem(last=False)
                self.size -= len(data) + _ENTRY_BYTES


def _keys(queries: Sequence[str] | Mapping[str, Any], k: int, wanted: Any) -> dict[str, bytes]:
    """Returns of each query a digest of it and of all else that is asked: 16 bytes, however long.

    Equal filters may have different digests, by the order of a set: their hits are kept twice.
    """
    rest = hashlib.blake2b(repr((k, wanted)).encode('utf-8', 'surrogatepass'), digest_size=32)
    key = rest.digest()
    return {query: hashlib.blake2b(query.encode('utf-8', 'surrogatepass'), digest_size=16,
                                   key=key).digest() for query in queries}
