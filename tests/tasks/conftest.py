"""Runs of the small loop in processes of their own, as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
SMALL_LOOP = ROOT / 'tests' / 'tasks' / 'small_loop.py'


def start(config: Path, workdir: Path, *overrides: str,
          environment: Mapping[str, str] = os.environ) -> subprocess.Popen:
    """Starts `vrag_jax.main` on one device; its output goes to WORKDIR.log."""
    # The simulated devices of the tests would only make a small run slower.
    environment = {k: v for k, v in environment.items() if k != 'XLA_FLAGS'}
    with open(f'{workdir}.log', 'a') as log:
        return subprocess.Popen(
            [sys.executable, '-m', 'vrag_jax.main', f'--config={config}',
             f'--workdir={workdir}', *overrides],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, workdir: Path) -> None:
    """Waits for a run and shows the end of its output if it failed."""
    code = process.wait(timeout=600)
    assert code == 0, Path(f'{workdir}.log').read_text()[-3000:]


@pytest.fixture(scope='session')
def run_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Returns a function that gives the folder of a run, played by whichever process asks first.

    Its arguments are the name of the run, and what plays it in the folder it is given.
    """
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    (folder / 'runs').mkdir(exist_ok=True)

    def play_once(name: str, play: Callable[[Path], None]) -> Path:
        workdir, played = (folder / 'runs' / f'{name}{suffix}' for suffix in ('', '.played'))
        with FileLock(f'{workdir}.lock'):
            if not played.exists():
                play(workdir)
                played.touch()
        return workdir

    return play_once


@pytest.fixture(scope='session')
def finished_run(run_once) -> Path:
    """Folder of a small loop that was never killed."""
    return run_once('finished', lambda workdir: finish(start(SMALL_LOOP, workdir), workdir))
