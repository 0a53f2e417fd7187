"""A run whose answers a model judges says so, and one whose judge cannot be read ends."""

import json
from pathlib import Path

import pytest

from tests.rewards.test_model_judge import FakeServer, completion
from tests.tasks.conftest import SMALL_LOOP, finish, start


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    fake = FakeServer()
    yield fake
    fake.close()


def evaluation(finished_run, workdir, server):
    return start(
        SMALL_LOOP, workdir, '--config.task=evaluate', '--config.evaluation.questions=4',
        f'--config.policy.checkpoint={finished_run / "policy"}', '--config.judge.model=grader',
        f'--config.judge.base_url={server.url}', '--config.judge.attempts=1',
        r'--config.judge.correct=\bYES\b', r'--config.judge.incorrect=\bNO\b',
        '--config.judge.prompt=Is {answer} one of {references}?')


def test_a_run_is_judged_by_the_model_of_its_config(finished_run, tmp_path, server):
    server.reply = lambda prompt, attempt: (200, completion('NO or: YES'))
    finish(evaluation(finished_run, tmp_path / 'run', server), tmp_path / 'run')
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['run']['judge'] == f'model: grader at {server.url}'
    assert results['run']['judge_failures'] == 0
    prompts = [body['messages'][0]['content'] for _, _, body in server.received]
    assert prompts[0] == 'Is Paris one of Paris?'
    for figures in results['methods'].values():
        # This judge takes every answer.
        assert figures['accuracy'] == figures['finished']
        assert 0 <= figures['f1']['value'] <= 1 and figures['exact_match']['n'] == 4
    report = (tmp_path / 'run' / 'report.html').read_text()
    assert f'model: grader at {server.url}' in report
    assert f'answers are judged by model: grader at {server.url}' in log(tmp_path / 'run')


def test_a_judge_that_cannot_be_read_ends_the_run_at_its_start(tmp_path, server):
    server.reply = lambda prompt, attempt: (200, completion('CORRECT'))
    process = start(
        SMALL_LOOP, tmp_path / 'run', '--config.judge.model=grader', '--config.judge.attempts=1',
        f'--config.judge.base_url={server.url}', r'--config.judge.correct=\bYES\b',
        r'--config.judge.incorrect=\bNO\b')
    assert process.wait(timeout=300) == 1
    assert log(tmp_path / 'run').strip().splitlines()[-1] == (
        f'config.judge: model: grader at {server.url} gave no verdict on a trial answer: '
        "NoVerdict: no verdict in 'CORRECT'")


def log(workdir: Path) -> str:
    return Path(f'{workdir}.log').read_text()
