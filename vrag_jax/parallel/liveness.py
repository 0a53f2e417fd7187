"""Ends every process of a run when one of them has died or failed, and says which it was."""

import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import jax

_OUTCOME = 'vrag_jax/outcome'
_SEEN = 'vrag_jax/seen_failure'
_END = 'vrag_jax/end'
WEEK_MS = 7 * 24 * 3600 * 1000
# Process 0 holds the service, so it stays for as long as this for others to read why.
_FAREWELL_S = 5.0
# Found in errors of collectives and calls whose other end is gone, among others. Whether
# it is gone, and which process it was, only the heartbeats tell.
_LOST_CONNECTION = ('gloo', 'nccl', 'unavailable', 'deadline_exceeded', 'connection', 'socket',
                    'coordination', 'cancelled', 'aborted', 'peer', 'barrier')


class Watchdog:
    """Watches the other processes of a run, in threads of its own.

    JAX's coordination service hears a heartbeat of every process from a native thread, so
    a process that compiles or is deep in other work counts as alive. By itself JAX aborts
    the others when one is missing, amid a stack trace; it does not hear of exceptions, and
    a process that ends with one waits for the others, which wait for it.

    Here one line names the process, and the exit status is 1, when
      - a heartbeat is missing for `heartbeat_s`,
      - process 0, which holds the service, cannot be reached,
      - a process has told of its failure (`fail`).

    Args:
      client: JAX's client of the coordination service.
      coordinator: 'HOST:PORT' of the service.
      process: index of this process.
      names: of all processes, in order, as they are shown.
      heartbeat_s: after so many seconds without a heartbeat a process is dead.
    """

    def __init__(self, client: Any, coordinator: str, process: int, names: Sequence[str],
                 heartbeat_s: int):
        self._client = client
        self._coordinator = coordinator
        self._process = process
        self._names = names
        self._heartbeat_s = heartbeat_s
        self._closing = threading.Event()
        self._last_words = threading.Lock()
        targets = [self._watch_outcome, self._watch_heartbeats]
        _delay_abort()
        if process:
            targets.append(self._watch_coordinator)
        self._threads = [threading.Thread(target=target, name=target.__name__, daemon=True)
                         for target in targets]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits until all processes have come here, still watching; then closes JAX's part."""
        self._client.wait_at_barrier(_END, WEEK_MS)
        self._closing.set()
        if not self._process:
            self._client.key_value_set(_OUTCOME, json.dumps(None))
        jax.distributed.shutdown()
        # A thread that wakes in native code after the interpreter's end would crash.
        for thread in self._threads:
            thread.join(self._heartbeat_s)

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process because of an exception, and the others with it.

        The exception is printed as Python would. If it can be the consequence of another
        process' end, the verdict on that is waited for, and the line names that one.
        """
        status, reason = _outcome(error)
        if _may_be_lost_connection(error):
            time.sleep(self._heartbeat_s + _FAREWELL_S)  # A watching thread ends the process.
        with self._last_words:
            try:
                self._client.key_value_set(
                    _OUTCOME, json.dumps({'process': self._process, 'reason': reason}))
                self._stay_for_others(self._process)
            except Exception as unsent:  # Another one failed first, or nobody is left.
                print(f'the failure of {self._names[self._process]} was not told: '
                      f'{_one_line(unsent)}', file=sys.stderr)
            exit_now(f'{self._names[self._process]} failed: {reason}', status)

    def _watch_outcome(self) -> None:
        try:
            outcome = json.loads(self._client.blocking_key_value_get(_OUTCOME, WEEK_MS))
            if outcome is None or outcome['process'] == self._process:
                return
            self._client.key_value_set(f'{_SEEN}/{self._process}', '')
        except Exception as error:
            return self._lost(error)
        self._end(f'{self._names[outcome["process"]]} failed: {outcome["reason"]}',
                  outcome['process'])

    def _watch_heartbeats(self) -> None:
        everyone = list(range(len(self._names)))
        while not self._closing.wait(1.0):
            try:
                # Returns when all that are alive have asked.
                alive = self._client.get_live_nodes(everyone)
            except Exception as error:
                return self._lost(error)
            dead = [self._names[p] for p in everyone if p not in alive]
            if dead:
                self._end(f'{", ".join(dead)} died: no heartbeat for {self._heartbeat_s} s')

    def _watch_coordinator(self) -> None:
        """Holds a connection to process 0, which breaks at once when that process ends.

        Calls of the service are not enough: the one thread that JAX has for their answers
        is the one that aborts. The service closes idle connections, and a host that has
        lost its power closes none, so that a new one is made now and then.
        """
        host, _, port = self._coordinator.rpartition(':')
        failed = 0
        while failed < 3:
            if self._closing.wait(0.5 if failed else 0.0):
                return
            try:
                with socket.create_connection((host.strip('[]'), int(port)),
                                              self._heartbeat_s) as connection:
                    failed = 0
                    _read_until_closed(connection, self._heartbeat_s, self._closing)
            except OSError:
                failed += 1
        self._end(f'{self._names[0]} died: {self._coordinator} cannot be reached')

    def _lost(self, error: Exception) -> None:
        found = re.search(r'stopped sending heartbeats\):\s*([\d\s,]+)', str(error))
        if found:
            dead = [self._names[int(number)] for number in re.findall(r'\d+', found.group(1))]
            return self._end(f'{", ".join(dead)} died: no heartbeat for {self._heartbeat_s} s')
        # If process 0 is gone, `_watch_coordinator` says so sooner.
        if not self._closing.wait(_FAREWELL_S if self._process else 0.0):
            self._end(f'the coordination service of {self._names[0]} has failed: '
                      f'{_one_line(error).partition(" Additional GRPC")[0]}')

    def _end(self, reason: str, failed: int = -1) -> None:
        if self._closing.is_set():
            return
        with self._last_words:
            if failed >= 0:
                self._stay_for_others(failed)
            exit_now(f'{reason}; {self._names[self._process]} ends too', 1)

    def _stay_for_others(self, failed: int) -> None:
        """Process 0: keeps the service until all others have read of a failure."""
        others = set(range(1, len(self._names))) - {failed}
        deadline = time.monotonic() + _FAREWELL_S
        while not self._process and others and time.monotonic() < deadline:
            others -= {int(key.rpartition('/')[2])
                       for key, _ in self._client.key_value_dir_get(_SEEN)}
            time.sleep(0.05)


def _read_until_closed(connection: socket.socket, timeout_s: float,
                       closing: threading.Event) -> None:
    """Returns when the other side has closed, at a time-out, or within a second of `closing`."""
    connection.settimeout(1.0)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not closing.is_set():
        try:
            if not connection.recv(4096):
                return
        except TimeoutError:
            pass


def _outcome(error: BaseException) -> tuple[int, str]:
    """Prints an exception as Python would; returns exit status and reason."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            return error.code, f'exit status {error.code}'
        print(error.code, file=sys.stderr)
        return 1, _one_line(error)
    traceback.print_exception(error)
    status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return status, ': '.join(filter(None, (type(error).__name__, _one_line(error))))


def _may_be_lost_connection(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, Exception) and any(word in text for word in _LOST_CONNECTION)


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())[:500]


def exit_now(line: str, status: int) -> NoReturn:
    """Leaves without the clean-up of JAX, which would wait for the other processes."""
    sys.stdout.flush()
    # One write, so that lines of processes that share a terminal stay whole; and the
    # interpreter's lock is kept until the end: whoever took it meanwhile, and JAX, which
    # hears of the same death, would have the last word.
    libc, words = ctypes.PyDLL(None), f'{line}\n'.encode()
    libc.write(sys.stderr.fileno(), words, len(words))
    libc._exit(status)
    os._exit(status)  # Is not reached; says so to who reads types.


def _delay_abort() -> None:
    """Leaves the watching threads the time to say why, where JAX aborts the process.

    JAX aborts within milliseconds when process 0 is gone, and jaxlib's callback for that
    cannot be used from Python. So the handler of SIGABRT is C's `sleep`: it gets the
    signal's number, 6, as its seconds, may be called in a handler, and needs no lock of the
    interpreter. The process is aborted after it all the same.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
