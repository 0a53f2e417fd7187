"""The report holds what was measured, draws every turn, and loads nothing."""

import base64
import dataclasses
import html.parser
import json
import re
import shutil

import pytest

from vrag_jax.evaluation.report import write_report
from vrag_jax.evaluation.results import save_results
from vrag_jax.evaluation.summary import summarize
from vrag_jax.evaluation.trajectory_io import load_trajectories, save_trajectories


class Page(html.parser.HTMLParser):
    """Collects tags, text and whether every tag is closed in order."""

    VOID = {'meta', 'img', 'line', 'rect', 'circle', 'polyline', 'br'}

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style' and data.strip():
            self.text.append(' '.join(data.split()))

    def of_class(self, name):
        return [attrs for _, attrs in self.tags if name in (attrs.get('class') or '').split()]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, zooming, hasty, silent):
    """A finished run of two methods."""
    tmp_path = tmp_path_factory.mktemp('run')
    save_results(
        tmp_path / 'results.json',
        {'grpo': summarize([zooming, hasty, silent]), 'vanilla_rag': summarize([hasty, silent])},
        {'config': 'configs/tiny.py', 'judge': 'rule: contains', 'judge_failures': 0, 'seed': 3,
         'minutes': 27.25, 'sampling': {'temperature': 1.0, 'top_k': 0}})
    rows = [{'step': step, 'phase': phase, 'time': 0.0, 'values': values}
            for phase, values in (('pretrain', {'loss': 2.0}), ('sft', {'loss': 1.0}),
                                  ('grpo', {'loss': 9.0, 'reward': 0.5, 'kl': float('nan')}))
            for step in (1, 2, 3)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    save_trajectories(tmp_path / 'drawn', [zooming, hasty, silent])
    return tmp_path


@pytest.fixture(scope='module')
def page(workdir):
    path = write_report(workdir, {'After GRPO': workdir / 'drawn'}, 'A run')
    page = Page(path.read_text(encoding='utf-8'))
    assert page.open == []
    return page


def test_it_is_one_file_that_loads_nothing(workdir, page):
    for tag, attrs in page.tags:
        assert tag not in ('script', 'link', 'iframe')
        for name in ('src', 'href'):
            assert re.match(r'data:image/|#', attrs.get(name) or '#')
    assert not re.search(r'url\(|@import|https?:', (workdir / 'report.html').read_text())


def test_the_table_has_a_row_a_method_with_its_interval(page):
    assert page.text.index('Vanilla RAG') < page.text.index('SFT + GRPO')
    assert '33.3 %' in page.text  # one of three is right
    assert '6.1 – 79.2' in page.text
    assert len(page.of_class('interval')) == 2


def test_facts_about_the_run_are_given(page):
    for fact in ('configs/tiny.py', '3', '27.25', 'temperature 1.00, top_k 0'):
        assert fact in page.text


def test_every_table_names_the_judge_and_answers_without_a_verdict(workdir, page, tmp_path):
    text = ' '.join(page.text)
    assert text.count('rule: contains') == 4  # Facts, results, two breakdowns.
    assert 'no verdict' not in text
    content = json.loads((workdir / 'results.json').read_text())
    content['run'] |= {'judge': 'model: <grader> at http://h', 'judge_failures': 7}
    (tmp_path / 'results.json').write_text(json.dumps(content))
    text = ' '.join(Page(write_report(tmp_path, {}).read_text()).text)
    assert 'model: <grader> at http://h' in text
    assert 'gave no verdict on 7 answers' in text


def test_there_is_a_chart_for_what_was_measured_and_finite(page):
    titles = [attrs['aria-label'] for attrs in page.of_class('chart')]
    assert titles == ['Pretraining loss', 'SFT loss', 'Reward']


def test_every_turn_of_every_trajectory_is_drawn(page):
    assert len(page.of_class('trajectory')) == 3
    assert len(page.of_class('turn')) == 3 + 3 + 1
    for text in ('K top right', '[61, 30, 92, 47]', 'velora market', 'a box must be four numbers',
                 'nothing new', 'cut off by the token limit', 'reward 1.00', '478'):
        assert text in page.text


def test_right_and_wrong_are_marked(page):
    marks = [attrs['class'] for tag, attrs in page.tags
             if tag == 'a' and attrs['href'].startswith('#t')]
    assert marks == ['right', 'wrong', 'wrong']


def test_images_are_embedded_as_they_are(workdir, page):
    record = load_trajectories(workdir / 'drawn')[0]
    sources = [attrs['src'] for tag, attrs in page.tags if tag == 'img']
    assert len(sources) == 3  # page and region of the first, page of the second
    assert base64.b64decode(sources[0].split(',')[1]) == record.image_path(0).read_bytes()


def test_the_chosen_box_lies_on_the_page(page):
    (box,) = page.of_class('chosen')[1:]  # the first is the key
    # (61, 30, 92, 47) of 112 x 112 pixels.
    assert box['style'] == 'left:54.46%;top:26.79%;width:27.68%;height:15.18%'


def test_texts_of_the_policy_cannot_break_out(workdir, tmp_path, zooming):
    shutil.copy(workdir / 'results.json', tmp_path)
    save_trajectories(
        tmp_path / 'drawn', [dataclasses.replace(zooming, answer='<script>alert(1)</script>')])
    text = write_report(tmp_path, {'After GRPO': tmp_path / 'drawn'}).read_text()
    assert '<script' not in text
    assert '&lt;script&gt;alert(1)' in text


def test_control_characters_of_the_policy_can_be_seen(workdir, tmp_path, hasty):
    shutil.copy(workdir / 'results.json', tmp_path)
    (first, *rest) = hasty.turns
    save_trajectories(tmp_path / 'drawn', [dataclasses.replace(
        hasty, answer='4\x007\u202e8\x7f', turns=[
            dataclasses.replace(first, text='<bbox>\x1b[1\x85, 2]</bbox>'), *rest])])
    text = write_report(tmp_path, {'After GRPO': tmp_path / 'drawn'}).read_text('utf-8')
    assert '4\\x007\\u202e8\\x7f' in text
    assert '\\x1b[1\\x85, 2]' in text
    assert not [c for c in text if not c.isprintable() and not c.isspace()]
    # Charts and bars are markup and stay so.
    assert '<svg' in text and '&lt;svg' not in text


def test_a_run_without_training_has_no_charts(workdir, tmp_path):
    shutil.copy(workdir / 'results.json', tmp_path)
    page = Page(write_report(tmp_path, {}).read_text())
    assert 'Learning curves' not in page.text
    assert 'Results' in page.text


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='results.json'):
        write_report(tmp_path, {})
