"""Connection limits: how many, and how long each part of a request may take."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vrag_jax.serving.service_config import ServiceLimits

_GRACE_SECONDS = 1.0  # For the application, which answers bodies that do not come by itself.


def protocol(limits: ServiceLimits) -> type[H11Protocol]:
    """Returns uvicorn's HTTP protocol with limits.

    It hangs up on clients that do not send a request's headers or body in time, byte by byte
    or not at all, do not take an answer in time, or are more than there may be. Between
    requests uvicorn's own limit holds (`timeout_keep_alive`).
    """

    class LimitedProtocol(H11Protocol):
        # What is waited for; at its end the connection is closed.
        _timer: asyncio.TimerHandle | None = None
        _awaited = ''
        _taking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._refuse(503, f'{limits.connections} connections are open already')
                return
            self._await('headers')

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if not self.transport.is_closing():
                self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing():
                self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._await('')
            self._time_answer(False)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._time_answer(True)

        def _look(self) -> None:
            """Notes what is waited for: which part of a request, or that an answer is taken."""
            self._time_answer(self.transport.get_write_buffer_size() > 0)
            state = self.conn.their_state
            if state is h11.SEND_BODY:
                self._await('body')
            elif state is h11.IDLE and self.conn.trailing_data[0]:
                self._await('headers')
            else:
                self._await('')

        def _time_answer(self, waits: bool) -> None:
            """An answer of many pieces has its time as a whole, from the first that waits."""
            if waits and self._taking is None:
                self._taking = self.loop.call_later(limits.answer_seconds, self._not_taken)
            elif not waits and self._taking is not None:
                self._taking.cancel()
                self._taking = None

        def _not_taken(self) -> None:
            self._taking = None
            if self.transport.get_write_buffer_size():
                self.transport.abort()

        def _await(self, part: str) -> None:
            if part == self._awaited:
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._awaited = part
            if part:
                seconds = (limits.header_seconds if part == 'headers'
                           else limits.body_seconds + _GRACE_SECONDS)
                self._timer = self.loop.call_later(seconds, self._late, part, seconds)

        def _late(self, part: str, seconds: float) -> None:
            if self.transport.is_closing():
                return
            if part == 'body' and self.cycle is not None and not self.cycle.response_complete:
                # Whoever answers is at work: the connection ends with the answer.
                self.cycle.keep_alive = False
                return
            if part == 'headers' and self.conn.trailing_data[0]:
                self._refuse(408, f'the {part} were not there after {seconds:g} seconds')
                return
            self.transport.close()

        def _refuse(self, status: int, message: str) -> None:
            """Answers what is no whole request, and closes the connection."""
            body = json.dumps({'error': message, 'field': ''}).encode()
            phrase = {408: b'Request Timeout', 503: b'Service Unavailable'}[status]
            self.transport.write(
                b'HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n'
                b'Retry-After: 1\r\nConnection: close\r\n\r\n%s'
                % (status, phrase, len(body), body))
            self.transport.close()

    return LimitedProtocol
