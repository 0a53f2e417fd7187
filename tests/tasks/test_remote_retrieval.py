"""GRPO and evaluation that search by a service do bit for bit what they do in one process."""

import json

import pytest

pytest.importorskip('fastapi', reason="needs the extra 'serve'")

import httpx  # noqa: E402

from tests.serving.conftest import running  # noqa: E402
from tests.serving.test_search_service import metric  # noqa: E402
from tests.tasks.conftest import SMALL_LOOP, finish, start  # noqa: E402
from tests.tasks.test_resume import NOT_COMPARED, rows  # noqa: E402
from vrag_jax.corpus.pages import PageStore  # noqa: E402
from vrag_jax.retrieval.engine import SearchEngine  # noqa: E402
from vrag_jax.serving.live import LiveIndex  # noqa: E402


@pytest.fixture(scope='module')
def runs(finished_run, tmp_path_factory):
    """Folders of GRPO with the index in the process, and by a service; queries it was asked."""
    manifest, index = finished_run / 'pageworld' / 'pages.jsonl', finished_run / 'index'

    def load():
        store = PageStore.open(manifest)
        return store, SearchEngine.open(index, store)

    def grpo(name, *overrides):
        workdir = tmp_path_factory.mktemp('runs') / name
        finish(start(SMALL_LOOP, workdir, '--config.task=grpo', '--config.grpo.steps=2',
                     f'--config.policy.checkpoint={finished_run / "policy"}', *overrides), workdir)
        return workdir

    here = grpo('searching_here')
    with running(LiveIndex(load, (manifest,))) as (url, _):
        there = grpo('searching_there', f'--config.retrieval.url={url}')
        with httpx.Client(base_url=url) as client:
            asked = metric(client, 'vrag_request_queries_sum')
    return here, there, asked


@pytest.mark.slow
def test_the_service_was_asked_and_nothing_was_indexed(runs):
    here, there, asked = runs
    # At least the searches of the rollouts: 2 steps of 8 episodes, 2 evaluations of 10.
    assert asked > 30
    assert (here / 'index').exists() and not (there / 'index').exists()


@pytest.mark.slow
def test_every_step_of_grpo_is_the_same(runs):
    here, there, _ = runs
    assert len(rows(here)) == len(rows(there)) == 2
    for one, other in zip(rows(here), rows(there), strict=True):
        for name in one['values'].keys() - NOT_COMPARED:
            assert one['values'][name] == other['values'][name], (one['step'], name)
        assert one['values']['reward_retrieval'] > 0  # Pages were found.


@pytest.mark.slow
def test_the_trajectories_and_weights_are_the_same_bits(runs):
    here, there, _ = runs
    for name in ('trajectories/grpo/trajectories.jsonl', 'policy/model.safetensors'):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    one, other = (json.loads((run / 'results.json').read_text())['methods']
                  for run in (here, there))
    assert one == other


def test_a_run_without_its_service_ends_with_its_url(finished_run, tmp_path):
    process = start(
        SMALL_LOOP, tmp_path / 'run', '--config.retrieval.url=http://127.0.0.1:9',
        '--config.task=evaluate', f'--config.policy.checkpoint={finished_run / "policy"}')
    assert process.wait(timeout=300) != 0
    assert 'search service http://127.0.0.1:9: cannot be used' in (
        tmp_path / 'run.log').read_text()
