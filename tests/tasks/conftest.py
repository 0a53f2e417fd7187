"""Runs of the small loop in processes of their own, as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

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
def finished_run(tmp_path_factory) -> Path:
    """Folder of a small loop that was never killed."""
    workdir = tmp_path_factory.mktemp('runs') / 'finished'
    finish(start(SMALL_LOOP, workdir), workdir)
    return workdir
