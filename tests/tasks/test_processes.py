"""A run of two processes, killed, resumed in one and then in two: the same as in one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tasks.conftest import ROOT, SMALL_LOOP, start
from tests.tasks.small_loop import STEPS
from tests.tasks.test_resume import NOT_COMPARED, rows

# A micro-batch of two rows splits over two devices; what is averaged stays the same.
ROWS = '--config.pretrain.learner.rows=2'
HEARTBEAT_S = 5


def start_two(workdir: Path, *overrides: tuple[str, ...]) -> list[subprocess.Popen]:
    """Starts `vrag_jax.main` in two processes of one device; output goes to WORKDIR.N.log.

    Args:
      workdir: of the run.
      overrides: flags of each process besides.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    started = []
    for process in range(2):
        environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {
            'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2',
            'JAX_PROCESS_ID': str(process)}
        with open(f'{workdir}.{process}.log', 'a') as log:
            started.append(subprocess.Popen(
                [sys.executable, '-m', 'vrag_jax.main', f'--config={SMALL_LOOP}',
                 f'--workdir={workdir}', ROWS, f'--config.distributed.heartbeat_s={HEARTBEAT_S}',
                 *(overrides[process] if overrides else ())],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return started


def log_of(workdir: Path, process: int) -> str:
    return Path(f'{workdir}.{process}.log').read_text()


def until(workdir: Path, phase: str, step: int, processes: list[subprocess.Popen]) -> None:
    """Waits for a step of a phase to be done."""
    while not any(row['phase'] == phase and row['step'] >= step for row in rows(workdir)):
        for process in processes:
            assert process.poll() is None, [
                file.read_text()[-3000:] for file in workdir.parent.glob(f'{workdir.name}*.log')]
        time.sleep(0.05)


@pytest.fixture(scope='module')
def moved_run(finished_run, run_once) -> Path:
    """Folder of a run of two processes, then one, then two again."""
    return run_once('moved', move)


def move(workdir: Path) -> None:
    """Plays a run of two processes, one of which is killed, then of one, then of two again."""
    both = start_two(workdir)
    until(workdir, 'sft', 3, both)
    both[1].send_signal(signal.SIGKILL)
    assert both[0].wait(timeout=HEARTBEAT_S + 30) != 0, log_of(workdir, 0)[-3000:]
    assert 'coordination service' in log_of(workdir, 0), log_of(workdir, 0)[-3000:]

    alone = start(SMALL_LOOP, workdir, ROWS)
    until(workdir, 'grpo', 3, [alone])
    alone.send_signal(signal.SIGKILL)
    alone.wait()

    for process in start_two(workdir):
        code = process.wait(timeout=900)
        assert code == 0, [log_of(workdir, i)[-3000:] for i in range(2)]


@pytest.mark.slow
def test_every_step_stands_once_and_in_order(moved_run):
    assert [(row['phase'], row['step']) for row in rows(moved_run)] == [
        (phase, step) for phase, count in STEPS.items() for step in range(1, count + 1)]


@pytest.mark.slow
def test_every_step_did_the_same_up_to_rounding(finished_run, moved_run):
    # Of the packing: it has rows of its own.
    packing = {'padding', 'micro_batches'}
    for one, other in zip(rows(finished_run), rows(moved_run), strict=True):
        for name in one['values'].keys() - NOT_COMPARED - packing:
            assert other['values'][name] == pytest.approx(
                one['values'][name], rel=1e-4, abs=1e-5), (one['phase'], one['step'], name)


def test_configs_that_differ_are_refused(tmp_path):
    both = start_two(tmp_path / 'run', (), ('--config.seed=1',))
    assert [process.wait(timeout=120) for process in both] == [1, 1]
    for process in range(2):
        said = log_of(tmp_path / 'run', process)
        assert 'the config differs: process 0: \' "seed": 0,\'; process 1: ' in said
    assert not (tmp_path / 'run').exists()
