"""A task is added from outside the package: one file, and one line in a config."""

import json
import subprocess
import sys

import pytest

from tests.tasks import count_questions
from tests.tasks.conftest import ROOT

CONFIG = '''
from tests.tasks import small_loop
from tests.tasks.count_questions import TASK
from vrag_jax.tasks.registry import TASKS


def get_config():
    TASKS['count_questions'] = TASK
    config = small_loop.get_config()
    config.task = 'count_questions'
    return config
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Returns a function that runs the task by a command line."""
    folder = tmp_path_factory.mktemp('own_task')
    (folder / 'config.py').write_text(CONFIG)

    def run(*flags):
        done = subprocess.run(
            [sys.executable, '-m', 'vrag_jax.main', '--config', str(folder / 'config.py'),
             '--workdir', str(folder / 'work'), *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=300)
        return done, folder / 'work'

    return run


def test_it_runs_with_settings_of_its_own(run):
    done, workdir = run('--config.count_questions.split=test')
    assert done.returncode == 0, done.stderr
    counts = json.loads((workdir / 'questions.json').read_text())
    assert sum(counts.values()) == 16  # `test_questions` of the small loop.
    assert json.loads((workdir / 'config.json').read_text())['count_questions'] == {
        'split': 'test', 'most_words': 100}
    assert count_questions.TASK.settings().split == 'train'


@pytest.mark.parametrize(('flag', 'message'), [
    ('--config.count_questions.most_words=0',
     'config.count_questions: most_words must be positive, got 0'),
    ('--config.count_questions.splitt=test',
     "config.count_questions.splitt: no such field; in config.count_questions there are "
     "['most_words', 'split']"),
    ('--config.task=count_question', "config.task: must be one of ('loop', ")])
def test_its_settings_are_checked_like_all_others(run, flag, message):
    done, _ = run(flag)
    assert done.returncode != 0
    assert message in done.stderr and 'Traceback' not in done.stderr
