"""Replies of judge models say what they say, also where they say it in a sentence."""

import pytest

from vrag_jax.rewards.verdicts import PROMPT, JudgePrompt, VerdictPattern


@pytest.mark.parametrize('reply, right', [
    ('CORRECT', True), ('**Correct**', True), ('correct.', True), ('{"correct": true}', True),
    ('Correct? Yes', True), ('not incorrect', True), ('Not wrong. Correct!', True),
    ('I have no doubt that it is correct', True), ('not only that: it is correct', True),
    ('The correct answer is 5, and so is the one to grade. CORRECT', True),
    ('Is it CORRECT or INCORRECT? CORRECT', True), ('It may look incorrect, but: CORRECT', True),
    ('INCORRECT', False), ('incorrect.', False), ('The answer is not correct.', False),
    ("It isn't correct", False), ('It isn\u2019t correct', False), ('not entirely correct', False),
    ('It is **not** correct', False), ('not a fully correct answer', False),
    ('non-correct', False), ('NOT_CORRECT', False), ('not\ncorrect', False),
    ('cannot be considered correct', False), ('I would not say that it is correct', False),
    ('It can hardly be called correct', False), ('partially correct', False),
    ('Correct: no', False), ('{"correct": false}', False), ('CORRECT... no, INCORRECT', False),
    ('Maybe', None), ('CORRECT or INCORRECT', None), ('correctly', None), ('', None)])
def test_words_of_a_verdict(reply, right):
    assert VerdictPattern().read(reply) is right


@pytest.mark.parametrize('reply', [
    # The verdict stands first, what it would have been comes after.
    'INCORRECT. The correct answer is 7.', 'Wrong. The correct answer would be 1999.',
    'INCORRECT\n\nExplanation: the page says 12, so the correct answer is 12.',
    'No, the answer is wrong; the correct answer is 5.',
    'This answer is false. The correct one is blue.', 'Correct answer: 5. Given: 6. Wrong.',
    'I do not believe the answer is correct.', "I don't think the answer is correct.",
    'It is not considered to be correct.', 'The answer cannot be said to be correct',
    'It counts not as being correct', 'not even correct', 'not even close to correct',
    'not strictly speaking correct', 'not factually or numerically correct',
    'It is not, in my opinion, correct', 'None of it is correct',
    'Neither the number nor the unit is correct', 'No part of the answer is correct',
    'It is no longer correct', 'It fails to be correct', 'far from correct',
    'anything but correct', 'It isnt correct', 'It isn`t correct', 'It isn\u02bct correct',
    'in-correct', "{'correct': False}", 'Correct - No'])
def test_a_wrong_answer_is_not_taken_for_right(reply):
    assert VerdictPattern().read(reply) is False


@pytest.mark.parametrize('reply', [
    'CORRECT (no incorrect facts)', 'CORRECT; nothing is incorrect', 'Correct: no facts differ',
    'Correct: 0 errors', 'CORRECT, not partially correct', 'The answer is correct.',
    'Verdict: CORRECT', 'The reference says 5, and so does the answer.\n\nCORRECT'])
def test_a_right_answer_is_not_taken_for_wrong(reply):
    assert VerdictPattern().read(reply) is True


@pytest.mark.parametrize('reply', [
    'The correct answer is 7.', 'Is it correct? I would say no.', 'I cannot tell.'])
def test_what_is_not_clear_is_no_verdict(reply):
    assert VerdictPattern().read(reply) is None


@pytest.mark.parametrize('reply, right', [
    ('yes', True), ('no', False), ('yes? no: yes', True), ('yes, then no', False), ('?', None),
    ('not yes', False)])
def test_own_patterns_the_last_counts_and_of_two_at_an_end_the_wrong_one(reply, right):
    assert VerdictPattern('yes', r'(not yes|\bno\b)').read(reply) is right


@pytest.mark.parametrize('patterns, message', [
    (('yes', ''), 'give both or neither'), (('', 'no'), 'give both or neither'),
    (('(', 'no'), 'correct: not a regular expression'),
    (('yes', '['), 'incorrect: not a regular expression')])
def test_patterns_that_cannot_work(patterns, message):
    with pytest.raises(ValueError, match=message):
        VerdictPattern(*patterns)


def test_braces_of_what_is_filled_in_are_text():
    text = JudgePrompt('{question}|{references}|{answer}|{"x": {}}').fill(
        '{answer}', '{question}', '{0} {references}')
    assert text == '{answer}|{question}|{0} {references}|{"x": {}}'
    assert 'Answer to grade: four' in JudgePrompt(PROMPT).fill('q', 'r', 'four')


@pytest.mark.parametrize('text, message', [
    ('{question} {references}', r'does not hold \{answer\}'),
    ('{answer}', r'does not hold \{references\}'),
    ('{answer} {references} {reference}', r'holds \{reference\}; known are')])
def test_prompts_that_cannot_work(text, message):
    with pytest.raises(ValueError, match=message):
        JudgePrompt(text)
