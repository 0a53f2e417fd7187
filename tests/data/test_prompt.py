"""The prompt around questions: read off conversations, kept in files, compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vrag_jax.data.prompt import Prompt, common_prompt, difference, read_prompt

FRAME = 'Think inside <think>. For example, <answer> 5 </answer>. Question: {question}'


@pytest.fixture
def run_prepare():
    """Runs `vrag_jax.data.prepare` as a user does."""
    def run(*arguments):
        return subprocess.run(
            [sys.executable, '-m', 'vrag_jax.data.prepare', *arguments], text=True,
            capture_output=True, cwd=Path(__file__).parents[2], env=os.environ)
    return run


def ask(questions, frame=FRAME):
    return [frame.replace('{question}', question) for question in questions]


def test_the_prompt_of_conversations_is_what_all_share():
    assert common_prompt(ask(['Who won?', 'What is it?', 'How many?'])).text == FRAME
    after = 'Q: {question}\nAnswer briefly.'
    assert common_prompt(ask(['Who won?', 'In which year?'], after)).text == after


def test_questions_that_begin_alike_do_not_lose_their_beginning():
    # Of a few questions 'What is the' is no part of the prompt, though all begin so.
    assert common_prompt(ask(['What is the date?', 'What is the name?'])).text == FRAME
    assert common_prompt(['What is the date?', 'What is the name?']).text == '{question}'
    # Nor is what they end with.
    assert common_prompt(ask(['Who is it in 2019?', 'Where is it in 2019?'])).text == FRAME
    after = '{question} Answer briefly.'
    assert common_prompt(ask(['Who won?', 'Name it.'], after)).text == after
    assert common_prompt(ask(['Who won?', 'What is it?'], after)).text == after


@pytest.mark.parametrize('frame', [
    'Question: "{question}"\nAnswer:', '[INST] {question} [/INST]', 'Question:{question}',
    'Answer.<question>{question}</question>', '请根据文档回答问题。问题：{question}',
    'Q: {question}',
    'Read the pages.\n\n{question}'])
def test_prompts_of_many_shapes(frame):
    assert common_prompt(ask(['Who won?', 'Which is it?'], frame)).text == frame
    if frame.endswith('}') or not frame.endswith('brief.'):
        assert common_prompt(ask(['Who won', 'Which year'], frame)).text == frame


def test_questions_of_one_pattern_are_no_prompt():
    texts = [f'How many {number} in the document?' for number in range(60)]
    assert common_prompt(texts).text == '{question}'


def test_prompts_that_share_nothing_are_the_question():
    assert common_prompt(['Who won?', 'Name it']).text == '{question}'


def test_one_question_tells_nothing():
    with pytest.raises(ValueError, match='two different questions or more, got 1'):
        common_prompt(['Who won?', 'Who won?'])


@pytest.mark.parametrize('text', ['no place', '{question} {question}'])
def test_a_prompt_holds_the_question_once(text):
    with pytest.raises(ValueError, match='once'):
        Prompt(text)


def test_a_prompt_matches_turns_that_it_makes():
    prompt = Prompt(FRAME)
    assert prompt.fill('Who {won}?') == FRAME.replace('{question}', 'Who {won}?')
    assert prompt.matches(prompt.fill('Who?'))
    assert not prompt.matches('Who?')
    assert not prompt.matches(prompt.fill(''))
    # Beginning and end must not be the same characters.
    assert not Prompt('ab{question}ba').matches('aba')


def test_a_prompt_is_kept_in_a_file(tmp_path):
    for name, prompt in (('p.txt', Prompt('\n' + FRAME + ' \n')), ('p.json', Prompt(FRAME)),
                         ('s.json', Prompt('你好 {question}', 'You read pages.'))):
        prompt.write(tmp_path / name)
        assert read_prompt(tmp_path / name) == prompt
    with pytest.raises(ValueError, match='t.txt.*system turn.*name a .json file'):
        Prompt(FRAME, 'You read.').write(tmp_path / 't.txt')


@pytest.mark.parametrize(('name', 'content', 'message'), [
    ('a.txt', 'no place', "a.txt: a prompt must hold '{question}' once"),
    ('a.json', '{"text": 3}', 'a.json: expected'),
    ('a.json', '{"text": "{question}", "sytem": "x"}', 'a.json: expected'),
    ('a.json', '{"text": ', 'a.json: Expecting value'),
    ('a.txt', None, 'no such prompt file'),
])
def test_files_without_a_prompt_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        read_prompt(tmp_path / name)


def test_the_difference_of_prompts_shows_both_where_they_part():
    assert difference(Prompt(FRAME), Prompt(FRAME)) == ''
    shown = difference(Prompt(FRAME + ' Be brief.'), Prompt(FRAME + ' Be exact.'))
    assert 'Be brief.' in shown and 'Be exact.' in shown
    assert difference(Prompt(system='a'), Prompt()) == "system turns 'a' and (the template's own)"


def test_the_prompt_of_a_file_of_conversations_is_written(tmp_path, run_prepare):
    records = [{'messages': [{'role': 'system', 'content': 'You read.'},
                             {'role': 'user', 'content': text},
                             {'role': 'assistant', 'content': '<answer>1</answer>'}]}
               for text in ask(['Who won?', 'What is it?'])]
    source = tmp_path / 'sft.json'
    source.write_text(json.dumps(records))
    done = run_prepare(f'--conversations={source}', f'--prompt={tmp_path}/prompt.json')
    assert done.returncode == 0, done.stderr
    assert 'prompt of 2 conversations' in done.stdout and 'You read.' in done.stdout
    assert read_prompt(tmp_path / 'prompt.json') == Prompt(FRAME, 'You read.')

    records[0]['messages'][1]['content'] = 'Another beginning'
    source.write_text(json.dumps(records))
    done = run_prepare(f'--conversations={source}', f'--prompt={tmp_path}/other.json')
    assert done.returncode != 0 and 'begin and end differently' in done.stderr
    assert not (tmp_path / 'other.json').exists()
    assert '--conversations' in run_prepare('--prompt=x.json').stderr
    assert '--out' in run_prepare(f'--conversations={source}').stderr
