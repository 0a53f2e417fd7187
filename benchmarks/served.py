"""The search service as a user starts it, for benchmarks."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import paired


@contextlib.contextmanager
def service(workdir: Path, overrides: Sequence[str]) -> Iterator[int]:
    """Starts the service as a user does; gives its port."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'vrag_jax.main', '--config=configs/serve_index.py',
         f'--workdir={workdir}', '--config.serving.port=0', '--config.data.source=files',
         *overrides], cwd=paired.ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            started = re.fullmatch(r'serving \d+ pages on http://127\.0\.0\.1:(\d+)', line.strip())
            if started:
                yield int(started[1])
                break
        else:
            raise RuntimeError(f'the service ended with code {process.wait()}')
    finally:
        process.terminate()
        if process.wait(60) and sys.exc_info()[0] is None:
            raise RuntimeError(f'the service ended with code {process.returncode}')
