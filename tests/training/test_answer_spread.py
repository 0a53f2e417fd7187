"""A judge that calls everything right or everything wrong is told of, once."""

import types

import pytest

from vrag_jax.training.answer_spread import AnswerSpread, without_spread


def group(*answers):
    return [types.SimpleNamespace(rewards={'answer': answer, 'total': answer + i / 8})
            for i, answer in enumerate(answers)]


def test_the_share_of_groups_that_are_all_the_same():
    groups = [group(0.0, 0.0), group(1.0, 1.0), group(0.0, 1.0), group(0.5, 0.25)]
    assert without_spread(groups, 'answer') == 0.5
    assert without_spread(groups, 'total') == 0.0


@pytest.mark.parametrize('shares, told', [
    ([1.0, 1.0, 1.0, 1.0], [False, False, True, False]),
    ([1.0, 0.95, 0.9, 1.0, 0.91, 0.92], [False] * 5 + [True]),
    ([0.9] * 6, [False] * 6)])
def test_it_warns_once_after_three_in_a_row(shares, told, caplog):
    spread = AnswerSpread('rule: exact')
    assert [spread.add({'no_spread_answer': share, 'accuracy': 0.0125})
            for share in shares] == told
    assert len(caplog.records) == sum(told)
    if any(told):
        for text in ('0.013 on average, by rule: exact', '--config.judge.rule=contains',
                     '--config.judge.base_url=URL'):
            assert text in caplog.text
