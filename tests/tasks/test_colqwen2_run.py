"""`--config.retrieval.colqwen2=PATH` from end to end: an index, a GRPO step and an evaluation."""

import json

import pytest
from PIL import Image, ImageDraw

from tests.embedders import colqwen_cases as cases
from tests.tasks.test_released import FACTS, SMALL, run
from tests.tasks.tiny_checkpoint import write_checkpoint

SIZES = {name: value for name, value in SMALL.items()
         if not name.startswith(('retrieval.', 'sft.'))} | {'mesh.tensor': 1}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Pages, questions, a policy, and a ColQwen2 as an adapter of its base."""
    folder = tmp_path_factory.mktemp('colqwen2')
    pages, questions = [], []
    for number, (topic, value) in enumerate(FACTS.items(), start=1):
        page = Image.new('RGB', (320, 240), 'white')
        ImageDraw.Draw(page).text((40, 60), f'{topic} {value}', 'black', font_size=40)
        page.save(folder / f'deck_{number}.png')
        pages.append({'page_id': f'deck_{number}', 'document': 'deck', 'page': number,
                      'file': f'deck_{number}.png', 'width': 320, 'height': 240})
        questions.append({
            'uid': number, 'query': f'{topic.title()}: how many?', 'reference_answer': str(value),
            'meta_info': {'file_name': 'deck.pdf', 'reference_page': [number]}})
    (folder / 'pages.jsonl').write_text('\n'.join(map(json.dumps, pages)))
    (folder / 'questions.json').write_text(json.dumps({'examples': questions}))
    write_checkpoint(folder / 'policy', list(FACTS))
    cases.write_checkpoint(folder / 'base', folder / 'adapter', 'colqwen2')
    return folder


def flags(folder, config, workdir, **fields):
    fields |= {'data.manifest': folder / 'pages.jsonl',
               'retrieval.colqwen2': folder / 'adapter',
               'data.eval_questions': folder / 'questions.json'}
    return [f'--config=configs/{config}.py', f'--workdir={workdir}',
            *(f'--config.{name}={value}' for name, value in fields.items())]


@pytest.mark.slow
def test_an_index_serves_a_grpo_step_and_an_evaluation(folder, tmp_path):
    code, text = run(*flags(folder, 'build_index', tmp_path / 'index'))
    assert code == 0, text[-3000:]
    assert 'index: visual_tokens, late_interaction: 3 pages, searched exactly' in text
    assert 'retrieval over 3 pages, 3 questions' in text
    for task in ('grpo', 'evaluate'):
        code, text = run(*flags(folder, 'grpo_3b', tmp_path / task, **SIZES, **{
            'task': task, 'policy.checkpoint': folder / 'policy',
            'data.train_questions': folder / 'questions.json',
            'retrieval.index_dir': tmp_path / 'index' / 'index'}))
        assert code == 0, text[-3000:]
        methods = json.loads((tmp_path / task / 'results.json').read_text())['methods']
        assert all(method['n'] == 2 for method in methods.values())


def test_a_checkpoint_of_another_kind_is_one_line(folder, tmp_path):
    wrong = folder / 'policy'
    code, text = run(*flags(folder, 'grpo_3b', tmp_path / 'wrong', **SIZES, **{
        'policy.checkpoint': folder / 'policy',
        'data.train_questions': folder / 'questions.json'}),
        f'--config.retrieval.colqwen2={wrong}')
    assert code != 0 and 'Traceback' not in text
    assert f'config.retrieval.colqwen2: {wrong}: no tensor custom_text_proj.weight' in text
