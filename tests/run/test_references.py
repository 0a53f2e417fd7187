"""A run says how many reference pages there are, and ends where there is none."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.tasks.conftest import ROOT, SMALL_LOOP
from vrag_jax.config import ConfigError
from vrag_jax.corpus.pages import Page, PageStore, scan_folder
from vrag_jax.data.records import Evidence, Question, parse_questions
from vrag_jax.run.references import report_references


@pytest.fixture
def store(tmp_path):
    return PageStore(tmp_path, [
        Page(f'{name}_{n}', name, n, f'{i}{n}.jpg', 9, 9)
        for i, name in enumerate(('a/annual', 'b/plan', 'c/plan')) for n in (1, 2)])


def example(number, file_name=None, pages=()):
    meta = {'file_name': file_name, 'reference_page': list(pages)} if file_name else {}
    return {'uid': number, 'query': 'q', 'reference_answer': 'a', 'meta_info': meta}


def questions_on(store, *asked):
    return parse_questions([example(i, *each) for i, each in enumerate(asked)], 'q.json', store)


def test_all_are_there(store, capsys, caplog):
    questions = questions_on(store, ('annual.pdf', [1]), ('c/plan.pdf', [1, 2]), ())
    report_references('train_questions', 'q.json', questions, store)
    assert capsys.readouterr().out == (
        'train_questions: the reference pages of 2 of 2 questions are there, 100 %\n')
    assert not caplog.records


def test_some_are_there(store, capsys, caplog):
    questions = questions_on(
        store, ('annual.pdf', [1]), ('annual.pdf', [2, 3]), ('plan.pdf', [1]), ('none.pdf', [1]),
        ('none.pdf', [2, 3]), ())
    report_references('eval_questions', 'q.json', questions, store)
    assert capsys.readouterr().out == (
        'eval_questions: the reference pages of 1 of 5 questions are there, 20.0 % '
        '(1 more: some of them)\n')
    record, = caplog.records
    assert record.getMessage() == (
        'config.data.eval_questions: q.json: 5 reference pages are not among the pages, so '
        "retrieving them cannot be rewarded: annual.pdf page 3 (of 'a/annual' there are other "
        "pages), plan.pdf page 1 (is it 'b/plan' or 'c/plan'?), none.pdf page 1 and 2 more")


def test_none_is_there(store):
    with pytest.raises(ConfigError) as error:
        report_references('train_questions', 'q.json', questions_on(
            store, ('x.pdf', [1]), ('y.pdf', [3])), store)
    assert str(error.value) == (
        'config.data.train_questions: q.json: none of the reference pages of 2 questions is among '
        'the 6 pages of config.data.manifest: there is no x.pdf page 1, y.pdf page 3; there are '
        "the documents 'a/annual', 'b/plan', 'c/plan'")


def test_questions_that_name_no_pages(store, capsys):
    report_references('train_questions', 'q.json', questions_on(store, (), ()), store)
    assert 'no question names its pages: the retrieval reward of all is 0' in (
        capsys.readouterr().out)


def test_boxes_on_pages_that_are_not_there(store, caplog):
    boxes = tuple(Evidence(page, (0, 0, 1, 1)) for page in ('b/plan_1', 'plan_1'))
    report_references('train_questions', 'q.json', [
        Question('1', 'q', 'a', page_ids=('b/plan_1',), evidence=boxes)], store)
    assert '1 pages of evidence boxes are not among the pages: plan_1' in caplog.text


def test_nearly_all_are_not_all(store, capsys):
    questions = questions_on(store, *[('annual.pdf', [1])] * 4000, ('none.pdf', [1]))
    report_references('train_questions', 'q.json', questions, store)
    assert '4,000 of 4,001 questions are there, 99.9 %' in capsys.readouterr().out


def run(tmp_path, questions):
    """Starts GRPO on a flat folder of one deck, as far as the questions."""
    pages = tmp_path / 'pages'
    pages.mkdir()
    for n in (1, 2):
        Image.new('RGB', (56, 56)).save(pages / f'deck_{n}.jpg')
    PageStore.write(pages / 'pages.jsonl', scan_folder(pages))
    files = []
    for name, examples in questions.items():
        files.append(tmp_path / name)
        files[-1].write_text(json.dumps(examples))
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    return subprocess.run(
        [sys.executable, '-m', 'vrag_jax.main', f'--config={SMALL_LOOP}', '--config.task=grpo',
         '--config.data.source=files', f'--config.data.manifest={pages / "pages.jsonl"}',
         f'--config.data.train_questions={",".join(map(str, files))}',
         '--config.grpo.prompts=1', f'--workdir={tmp_path / "run"}'],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_run_without_any_of_the_pages_ends_with_one_line(tmp_path):
    done = run(tmp_path, {'q.json': [example(1, 'decks.pdf', [1])]})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert 'config.data.train_questions: ' in last and 'there is no decks.pdf page 1' in last
    assert 'Traceback' not in done.stderr
    assert 'answers are judged by rule: exact' in done.stdout


def test_several_files_are_merged(tmp_path):
    # Refused only after all of them have been read.
    done = run(tmp_path, {'q.json': [example(1, 'decks.pdf', [1])],
                          'r.json': [example(1, 'decks.pdf', [2])]})
    assert 'none of the reference pages of 2 questions' in done.stderr
    assert "of 2 questions 1 have a uid that is taken and get another, e.g. '1#2'" in done.stderr
