"""The whole loop leaves results, a report, drawn trajectories and a policy that runs again."""

import json

import pytest

from tests.tasks.conftest import SMALL_LOOP, finish, start

METHODS = {'vanilla_rag', 'no_crop', 'sft', 'grpo'}


@pytest.fixture(scope='module')
def results(finished_run) -> dict:
    return json.loads((finished_run / 'results.json').read_text())


@pytest.fixture(scope='module')
def evaluated(finished_run) -> dict:
    """Results of evaluating the policy that the run exported, in a new folder."""
    workdir = finished_run.with_name('evaluated')
    finish(start(SMALL_LOOP, workdir, '--config.task=evaluate',
                 f'--config.policy.checkpoint={finished_run / "policy"}'), workdir)
    return json.loads((workdir / 'results.json').read_text())


def test_results_hold_the_four_methods_over_the_same_questions(results):
    assert set(results['methods']) == METHODS
    for figures in results['methods'].values():
        assert figures['n'] == 10
        assert 0 <= figures['accuracy']['value'] <= 1


def test_results_state_what_was_trained(results):
    run = results['run']
    assert (run['seed'], run['pretrain_steps'], run['sft_steps'], run['grpo_steps']) == (0, 5, 5, 5)
    assert run['sft_trajectories'] == 24


def test_the_report_is_one_file(finished_run):
    report = (finished_run / 'report.html').read_text()
    for text in ('Vanilla RAG', 'SFT + GRPO, no crop', '<svg'):
        assert text in report
    assert 'src="http' not in report and 'href="http' not in report


def test_trajectories_are_kept(finished_run):
    folder = finished_run / 'trajectories' / 'grpo'
    assert len((folder / 'trajectories.jsonl').read_text().splitlines()) == 8


def test_the_exported_policy_does_what_the_trained_one_did(results, evaluated):
    # The same weights, tokenizer, image processor, questions and seeds.
    assert evaluated['methods']['policy'] == results['methods']['grpo']


def test_nothing_is_compiled_after_the_first_iterations(finished_run):
    lines = (finished_run / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for phase in ('pretrain', 'sft', 'grpo', 'grpo_no_crop'):
        counts = [r['values']['compilations'] for r in rows if r['phase'] == phase]
        # Saving after the second step, and the step after that, may compile once.
        assert counts[3] == counts[4], (phase, counts)
