"""Batches concurrent calls from many threads."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar('Request')
Result = TypeVar('Result')


class MicroBatcher(Generic[Request, Result]):
    """Answers requests in batches without waiting for a batch to fill.

    A caller that finds nobody at work answers its own request at once. Requests that come
    while one is being answered wait, and all of them are answered next, by one of their
    callers: the more there is to do, the larger the batches. No thread of its own.

    Args:
      answer: returns one result a request, in order. If it raises, each request of the
        batch is answered by itself, so that only those at fault raise.
      most: requests of a batch.
    """

    def __init__(self, answer: Callable[[Sequence[Request]], Sequence[Result]], most: int = 256):
        self._answer = answer
        self._most = most
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket[Request, Result]] = deque()
        self._busy = False

    def __call__(self, request: Request) -> Result:
        """Returns the result of a request, or raises what answering it by itself raises."""
        ticket: _Ticket[Request, Result] = _Ticket(request)
        with self._lock:
            self._waiting.append(ticket)
            leads = not self._busy
            self._busy = True
        if not leads:
            ticket.event.wait()
        if not ticket.done:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        return ticket.results[0]

    def _lead(self) -> None:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            self._run(batch)
        finally:
            with self._lock:
                # The next leader is the first that waits, and so is in the next batch.
                following = self._waiting[0] if self._waiting else None
                self._busy = following is not None
            if following is not None:
                following.event.set()
            for ticket in batch:
                ticket.event.set()

    def _run(self, batch: Sequence['_Ticket[Request, Result]']) -> None:
        try:
            results = self._answer([ticket.request for ticket in batch])
            for ticket, result in zip(batch, results, strict=True):
                ticket.results = [result]
        except BaseException as error:  # noqa: BLE001 (raised again, by the caller it is for)
            if len(batch) > 1 and isinstance(error, Exception):
                for ticket in batch:
                    self._run([ticket])
                return
            for ticket in batch:
                ticket.error = error
        for ticket in batch:
            ticket.done = True


class _Ticket(Generic[Request, Result]):
    """A request that waits, then its result or error."""

    def __init__(self, request: Request):
        self.request = request
        self.event = threading.Event()
        self.done = False
        self.results: list[Result] = []
        self.error: BaseException | None = None
