"""The table of actions."""

import dataclasses

import pytest

from vrag_jax.actions.action import ActionType
from vrag_jax.actions.registry import ACTIONS, ActionTable, get_actions, hints
from vrag_jax.actions.stopping import build_stop_table


def action(tag: str, **fields) -> ActionType:
    return dataclasses.replace(get_actions()[0], tag=tag, **fields)


def test_a_tag_is_taken_once():
    table = ActionTable()
    assert table.add(action('deskew')) is table['deskew']
    with pytest.raises(ValueError, match="'deskew' is taken"):
        table.add(action('deskew'))


@pytest.mark.parametrize('tag', ['', 'think', 'invalid', 'Flip', 'a b', '1st', 'a-b', 'a>'])
def test_tags_that_cannot_be_told_apart_are_refused(tag):
    with pytest.raises(ValueError, match='cannot have the tag'):
        action(tag)


def test_every_action_of_the_package_is_there():
    get_actions()
    assert {'search', 'bbox', 'answer', 'rotate'} <= set(ACTIONS)


@pytest.mark.parametrize(('words', 'sentence'), [
    ('a', 'a'), ('ab', 'a or b'), ('abc', 'a, b, or c'), ('abcd', 'a, b, c, or d')])
def test_what_can_be_done_is_one_sentence(words, sentence):
    assert hints([action('x', hint=word) for word in words]) == sentence


def test_too_many_tags_for_the_stop_table_are_refused():
    with pytest.raises(ValueError, match='256'):
        build_stop_table([b'a'], [action(letter * 40) for letter in 'abcd'])
