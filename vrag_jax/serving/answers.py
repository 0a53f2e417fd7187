"""Streamed answers, produced as fast as the client reads them."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vrag_jax.retrieval.hits import PackedHits
from vrag_jax.serving.live import Version

PIECE = 1 << 17  # Bytes.


class Answer:
    """An answer that a thread has begun, with its first piece.

    Args:
      pieces: of the body; whatever is left of it is asked for by and by.
      media_type: of the body.
      headers: further ones.
      size: bytes of the body, if it is in memory as a whole; else 0.
    """

    def __init__(self, pieces: Iterable[bytes], media_type: str = 'application/json',
                 headers: Mapping[str, str] | None = None, size: int = 0, status: int = 200):
        rest = iter(pieces)
        first = list(itertools.islice(rest, 2))
        self.whole = len(first) < 2
        self.pieces = itertools.chain(first, rest)
        self.media_type = media_type
        self.headers = dict(headers or {})
        self.size = size
        self.status = status


class AnswerResponse(Response):
    """Sends an answer: one piece at a time is made, when the client has taken those before.

    Args:
      answer: what is sent.
      pool: in which pieces are made, for making them is work.
      done: is called when the answer was sent, or nobody is there any more to take it.
    """

    def __init__(self, answer: Answer, pool: Executor, done: Callable[[], None]):
        content = b''.join(answer.pieces) if answer.whole else None
        super().__init__(content, answer.status, answer.headers, answer.media_type)
        if not answer.whole:
            # Of what is not in memory nobody knows how long it will be.
            del self.headers['content-length']
            if answer.size:
                self.headers['content-length'] = str(answer.size)
        self._pieces = None if answer.whole else answer.pieces
        self._in_memory = answer.size > 0
        self._pool = pool
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._pieces is None:
                await super().__call__(scope, receive, send)
                return
            await send({'type': 'http.response.start', 'status': self.status_code,
                        'headers': self.raw_headers})
            loop = asyncio.get_running_loop()
            # What is in memory need only be cut.
            while piece := next(self._pieces, b'') if self._in_memory else (
                    await loop.run_in_executor(self._pool, next, self._pieces, b'')):
                # Waits until the client has taken most of what was sent before.
                await send({'type': 'http.response.body', 'body': piece, 'more_body': True})
            await send({'type': 'http.response.body', 'body': b'', 'more_body': False})
        finally:
            self._done()


def slices(data: bytes) -> Iterator[bytes]:
    """Yields data in pieces."""
    for start in range(0, len(data), PIECE):
        yield data[start:start + PIECE]


def gathered(parts: Iterable[str]) -> Iterator[bytes]:
    """Yields text in pieces of about the same size, UTF-8."""
    held: list[str] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= PIECE:
            yield ''.join(held).encode()
            held, size = [], 0
    if held:
        yield ''.join(held).encode()


def hits_json(version: Version, results: Sequence[PackedHits]) -> Iterator[str]:
    """Yields the answer of `POST /search`, some of it of each query."""
    heads = version.json_heads
    yield f'{{"version":"{version.name}","results":['
    for number, hits in enumerate(results):
        text = ','.join([f'{heads[page_id]}{score!r}}}' for page_id, score in hits])
        yield f'{"," if number else ""}[{text}]'
    yield ']}'


def reference_json(version: Version, results: Sequence[PackedHits], count: int, root: str
                   ) -> Iterator[str]:
    """Yields the answer of `GET /search`, a piece of it of each query.

    Args:
      version: of the pages.
      results: hits of each query.
      count: pages of each query in the answer.
      root: what stands before the file of a page.
    """
    yield '['
    for number, hits in enumerate(results):
        ids = filled([hit.page_id for hit in hits], version, count)
        text = json.dumps([{'idx': i, 'image_file': f'{root}/{version.store[page_id].file}'}
                           for i, page_id in enumerate(ids)],
                          ensure_ascii=False, separators=(',', ':'))
        yield f'{"," if number else ""}{text}'
    yield ']'


def filled(found: list[str], version: Version, count: int) -> list[str]:
    """Returns `count` pages, or all there are: those found, then others in their order.

    The reference scores every page and always gives so many; its clients take the first
    without looking whether there is one.
    """
    taken = set(found)
    missing = min(count, len(version.store)) - len(found)
    others = (page_id for page_id in version.store.ids if page_id not in taken)
    return found + [page_id for page_id, _ in zip(others, range(missing), strict=False)]
