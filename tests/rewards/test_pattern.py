"""Which trajectories have the required form."""

from types import SimpleNamespace

import pytest

from vrag_jax.actions.action import Action
from vrag_jax.actions.grammar import parse_action
from vrag_jax.rewards.pattern import pattern

KINDS = {'s': 'search', 'b': 'bbox', 'a': 'answer', 'i': 'invalid'}


def actions(letters: str) -> list[Action]:
    return [Action(KINDS[letter], thought='because') for letter in letters]


def pattern_of(actions: list[Action]) -> float:
    return pattern(SimpleNamespace(turns=[SimpleNamespace(action=each) for each in actions]))


@pytest.mark.parametrize('letters', ['sa', 'sba', 'ssa', 'sbbsba'])
def test_search_before_boxes_and_one_answer_at_the_end(letters):
    assert pattern_of(actions(letters)) == 1.0


@pytest.mark.parametrize('letters', [
    '', 's', 'sb', 'a', 'ba', 'bsa', 'asa', 'saa', 'sas', 'ias', 'sia', 'i'])
def test_anything_else_fails(letters):
    assert pattern_of(actions(letters)) == 0.0


@pytest.mark.parametrize('turn', [0, 1, 2])
def test_every_turn_needs_a_thought(turn):
    trajectory = actions('sba')
    trajectory[turn] = Action(trajectory[turn].kind)
    assert pattern_of(trajectory) == 0.0


def test_tags_in_a_thought_or_query_do_not_make_a_pattern():
    # In the public code the text of these turns would pass.
    turns = ['<think>t</think><search>q</search>',
             '<think><search>q</search><answer>x</answer></think>']
    assert pattern_of([parse_action(turn) for turn in turns]) == 0.0
