"""The whole loop leaves results, a report, drawn trajectories and a policy that runs again."""

import json

import pytest

from tests.tasks import small_loop
from tests.tasks.conftest import SMALL_LOOP, finish, start
from tests.tasks.small_loop import STEPS
from vrag_jax.config import parse
from vrag_jax.models.common.tokenizer import SPECIAL_TOKENS
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig

METHODS = {
    'vanilla_rag', 'no_crop', 'pretrained', 'sft', 'grpo', 'sft_greedy', 'grpo_greedy'}


@pytest.fixture(scope='module')
def results(finished_run) -> dict:
    return json.loads((finished_run / 'results.json').read_text())


@pytest.fixture(scope='module')
def evaluated(finished_run, run_once) -> dict:
    """Results of evaluating the policy that the run exported, in a new folder."""
    workdir = run_once('evaluated', lambda workdir: finish(start(
        SMALL_LOOP, workdir, '--config.task=evaluate',
        f'--config.policy.checkpoint={finished_run / "policy"}'), workdir))
    return json.loads((workdir / 'results.json').read_text())


def test_results_hold_all_methods_over_the_same_questions(results):
    assert set(results['methods']) == METHODS
    for figures in results['methods'].values():
        assert figures['n'] == 10
        assert 0 <= figures['accuracy']['value'] <= 1


def test_results_state_what_was_trained(results):
    # Steps as taken: of SFT the config gives epochs.
    run = results['run']
    assert {phase: run[f'{phase}_steps'] for phase in STEPS} == STEPS
    assert (run['seed'], run['sft_trajectories']) == (0, 24)


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


def test_the_policy_cannot_write_placeholders(finished_run):
    """Nor any other special token, nor ids that the tokenizer does not have."""
    config = small_loop.get_config()
    config.policy.checkpoint = str(finished_run / 'policy')
    space = RunContext(parse(RunConfig, config), finished_run.with_name('reopened'))
    policy, tokenizer = space.model_config, space.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    assert set(space.end_ids) == set(ids(['<|im_end|>', '<|endoftext|>']))
    padding = set(range(len(tokenizer), policy.text.vocab_size))
    assert set(policy.suppressed_ids) == (
        set(ids(list(SPECIAL_TOKENS))) - set(space.end_ids) | padding)


def test_nothing_is_compiled_after_the_second_step_of_a_phase(finished_run):
    lines = (finished_run / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for phase in STEPS:
        counts = [r['values']['compilations'] for r in rows if r['phase'] == phase]
        assert len(counts) > 4
        assert counts[1] == counts[-1], (phase, counts)


@pytest.mark.slow
def test_without_scann_an_evaluation_finds_the_same(finished_run, evaluated, without_scann):
    workdir = finished_run.with_name('evaluated_without_scann')
    finish(start(SMALL_LOOP, workdir, '--config.task=evaluate',
                 f'--config.policy.checkpoint={finished_run / "policy"}',
                 environment=without_scann), workdir)
    log = workdir.with_name(f'{workdir.name}.log').read_text()
    assert log.count("ScaNN is missing (No module named 'scann'): vectors are searched") == 1
    assert json.loads((workdir / 'results.json').read_text())['methods'] == evaluated['methods']


@pytest.mark.slow
def test_without_scann_the_whole_loop_ends_with_the_same_results(
        finished_run, results, without_scann):
    workdir = finished_run.with_name('finished_without_scann')
    finish(start(SMALL_LOOP, workdir, environment=without_scann), workdir)
    assert json.loads((workdir / 'results.json').read_text())['methods'] == results['methods']
