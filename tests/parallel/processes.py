"""Programs that run in several processes on this machine."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Ended:
    """What a process has left: exit status, seconds it outlived the event, output."""

    status: int
    after: float
    stdout: str
    stderr: str


class Processes:
    """A program in several processes that find each other by JAX's environment variables.

    Args:
      folder: gets their output.
      program: Python text.
      count: how many are told of.
      environment: of all.
      started: which of them are started; all by default.
    """

    def __init__(self, folder: Path, program: str, count: int = 2,
                 environment: Mapping[str, str] | None = None,
                 started: tuple[int, ...] | None = None):
        folder.mkdir(exist_ok=True)
        self._folder = folder
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        settings = os.environ | {
            'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_PROCESSES': str(count),
            'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
            'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', **(environment or {})}
        self._running = {}
        for i in range(count) if started is None else started:
            with self._file(i, 'out').open('w') as out, self._file(i, 'err').open('w') as err:
                self._running[i] = subprocess.Popen(
                    [sys.executable, '-W', 'ignore', '-c', program], cwd=ROOT, stdout=out,
                    stderr=err, env=settings | {'JAX_PROCESS_ID': str(i)})
        self._event = time.monotonic()

    def kill(self, process: int) -> None:
        """Sends SIGKILL once all have printed READY."""
        self.send_when_ready(signal.SIGKILL, (process,))

    def send_when_ready(self, number: int, processes: tuple[int, ...]) -> None:
        """Sends a signal to some processes once all have printed READY."""
        deadline = time.monotonic() + 100
        while not all(re.search('^READY', self._file(i, 'out').read_text(), re.M)
                      for i in self._running):
            assert time.monotonic() < deadline, [
                self._file(i, 'err').read_text() for i in self._running]
            time.sleep(0.05)
        for process in processes:
            self._running[process].send_signal(number)
        self._event = time.monotonic()

    def wait(self, timeout: float = 120.0) -> dict[int, Ended]:
        """Waits for all of them."""
        ends: dict[int, float] = {}
        deadline = time.monotonic() + timeout
        try:
            while len(ends) < len(self._running):
                assert time.monotonic() < deadline, f'only {sorted(ends)} have ended'
                for i, process in self._running.items():
                    if i not in ends and process.poll() is not None:
                        ends[i] = time.monotonic()
                time.sleep(0.02)
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()
        return {i: Ended(process.returncode, ends[i] - self._event,
                         self._file(i, 'out').read_text(), self._file(i, 'err').read_text())
                for i, process in self._running.items()}

    def _file(self, process: int, kind: str) -> Path:
        return self._folder / f'{process}.{kind}'
