"""Load limits of a service: work in progress, and memory held by requests and answers."""

from collections.abc import Callable

from vrag_jax.serving.errors import RequestError
from vrag_jax.serving.service_config import ServiceLimits


class Load:
    """What all requests together hold; used by the event loop alone.

    Args:
      limits: beyond which the service is busy.
      changed: is told how many requests are worked on whenever that changes.
    """

    def __init__(self, limits: ServiceLimits, changed: Callable[[int], None]):
        self.limits = limits
        self.working = 0
        self.request_bytes = 0
        self.answer_bytes = 0
        self.changed = changed


class Share:
    """What one request holds of the load, until `leave`.

    Its methods raise a `RequestError`, 503, if there is too much already.
    """

    def __init__(self, load: Load):
        self._load = load
        self._working = False
        self._request_bytes = 0
        self._answer_bytes = 0

    def read(self, size: int) -> None:
        """Takes memory for so many bytes of the request."""
        load = self._load
        # One request alone is never too much: its own limits are others.
        if load.request_bytes > self._request_bytes and (
                load.request_bytes + size > load.limits.waiting_bytes):
            raise _busy(f'{load.request_bytes} bytes of requests are waiting already')
        self._request_bytes += size
        load.request_bytes += size

    def work(self) -> None:
        """Takes a place among those that are worked on."""
        load = self._load
        if load.working >= load.limits.waiting:
            raise _busy(f'{load.working} requests are waiting already')
        self._working = True
        load.working += 1
        load.changed(load.working)

    def send(self, size: int) -> None:
        """Takes memory for so many bytes of an answer."""
        load = self._load
        if load.answer_bytes and load.answer_bytes + size > load.limits.sending_bytes:
            raise _busy(f'{load.answer_bytes} bytes of answers are being sent already')
        self._answer_bytes += size
        load.answer_bytes += size

    def leave(self) -> None:
        """Gives back what it holds."""
        load = self._load
        load.request_bytes -= self._request_bytes
        load.answer_bytes -= self._answer_bytes
        self._request_bytes = self._answer_bytes = 0
        if self._working:
            self._working = False
            load.working -= 1
            load.changed(load.working)


def _busy(reason: str) -> RequestError:
    return RequestError(503, '', reason, {'Retry-After': '1'})
