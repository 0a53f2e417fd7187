"""Judging by a rule."""

import dataclasses

import pytest

from vrag_jax.rewards.judge import JudgeRequest, RuleJudge

RIGHT = JudgeRequest('What colour?', 'Red.', ('red',))
WRONG = JudgeRequest('What colour?', 'blue', ('red',))
MISSING = JudgeRequest('What colour?', None, ('red',))


def score(judge, requests):
    return [judgement.score for judgement in judge.judge(requests)]


def test_rule_judge_is_exact_match():
    judge = RuleJudge()
    assert score(judge, [RIGHT, WRONG, MISSING]) == [1.0, 0.0, 0.0]
    assert judge.name == 'rule: exact'


@pytest.mark.parametrize('rule, scores', [
    ('exact', [0.0, 0.0, 0.0]), ('contains', [1.0, 0.0, 0.0]),
    ('anls', [0.0, pytest.approx(2 / 3), 0.0])])
def test_rules_differ_on_sentences_and_near_misses(rule, scores):
    sentence = JudgeRequest('What colour is it?', 'The colour is red.', ('red',))
    assert score(RuleJudge(rule), [sentence, dataclasses.replace(RIGHT, answer='rad'),
                                   MISSING]) == scores


def test_a_rule_that_does_not_exist():
    with pytest.raises(ValueError, match="rule must be one of .*'contains'.*, got 'fuzzy'"):
        RuleJudge('fuzzy')
