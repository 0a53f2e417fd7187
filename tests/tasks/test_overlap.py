"""A run whose rollouts run beside the updates, with the options that such a run would take."""

import json

import pytest

from tests.tasks.conftest import SMALL_LOOP, finish, start

OPTIONS = (
    '--config.grpo.overlap=True', '--config.grpo.mini_batches=1', '--config.grpo.steps=7',
    '--config.grpo.save_every=3')


@pytest.mark.slow
def test_the_loop_with_rollouts_ahead(tmp_path):
    workdir = tmp_path / 'ahead'
    finish(start(SMALL_LOOP, workdir, *OPTIONS), workdir)
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    rows = [row['values'] for row in rows if row['phase'] == 'grpo']
    assert len(rows) == 7
    # After a checkpoint the rollout has the current weights: the sampler's log-probs are the
    # learner's. Otherwise the weights were updated in between.
    ahead = [row['drift_mean'] for n, row in enumerate(rows) if n % 3]
    current = [row['drift_mean'] for n, row in enumerate(rows) if not n % 3]
    assert max(current) < 1e-4 < min(ahead)
    assert (workdir / 'results.json').exists()
