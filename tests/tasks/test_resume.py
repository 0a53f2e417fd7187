"""A run that is killed again and again ends with the weights of one that never was."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.tasks.conftest import SMALL_LOOP, finish, start
from tests.tasks.small_loop import STEPS

# Where the run is killed: once so many steps of a phase are in its metrics.
KILLS = (('pretrain', 21), ('sft', 1), ('grpo', 3))
# What depends on the machine and on how often a run was started.
NOT_COMPARED = {'seconds', 'compilations', 'peak_memory_gb', 'tokens_per_s'}


def rows(workdir: Path) -> list[dict]:
    """Whole lines of `metrics.jsonl`."""
    path = workdir / 'metrics.jsonl'
    text = path.read_text() if path.exists() else ''
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]


def kill_at(workdir: Path, phase: str, step: int) -> None:
    """Runs the loop until a step of a phase is done, and kills it without warning."""
    process = start(SMALL_LOOP, workdir)
    while not any(row['phase'] == phase and row['step'] >= step for row in rows(workdir)):
        assert process.poll() is None, Path(f'{workdir}.log').read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope='module')
def killed_run(finished_run, run_once) -> Path:
    """Folder of a run that was killed in three phases before it came to its end.

    It comes after the run it is compared with, which filled the compile cache.
    """
    def play(workdir: Path) -> None:
        for phase, step in KILLS:
            kill_at(workdir, phase, step)
        finish(start(SMALL_LOOP, workdir), workdir)

    return run_once('killed', play)


def test_the_final_weights_are_the_same_bits(finished_run, killed_run):
    name = 'policy/model.safetensors'
    assert (killed_run / name).read_bytes() == (finished_run / name).read_bytes()


def test_every_step_stands_once_and_in_order(finished_run, killed_run):
    for workdir in (finished_run, killed_run):
        steps = [(row['phase'], row['step']) for row in rows(workdir)]
        assert steps == [
            (phase, step) for phase, count in STEPS.items() for step in range(1, count + 1)]


def test_every_step_did_the_same(finished_run, killed_run):
    for one, other in zip(rows(finished_run), rows(killed_run), strict=True):
        for name in one['values'].keys() - NOT_COMPARED:
            assert one['values'][name] == other['values'][name], (one['phase'], one['step'], name)


def test_every_phase_moved_the_weights(finished_run):
    # Without this, equal weights would say nothing.
    assert all(row['values']['grad_norm'] > 0 for row in rows(finished_run))


def test_pages_are_seen_in_grpo_before_and_after_the_kill(finished_run, killed_run):
    # Without this, a resumed run would never encode an image again for its episodes.
    for workdir in (finished_run, killed_run):
        found = [row['values']['reward_retrieval'] for row in rows(workdir)
                 if row['phase'].startswith('grpo')]
        assert min(found) > 0.2


def test_the_results_are_the_same(finished_run, killed_run):
    one, other = (json.loads((workdir / 'results.json').read_text())['methods']
                  for workdir in (finished_run, killed_run))
    assert one == other
