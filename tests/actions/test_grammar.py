"""The action grammar: what counts as an action, and why the rest does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.actions.action import Action
from vrag_jax.actions.grammar import parse_action
from vrag_jax.actions.rules import ActionRules

THOUGHT = '<think> look closer </think>'
TWENTY, INDEXED = ActionRules(search_chars=20), ActionRules(allow_image_index=True)


@pytest.mark.parametrize('text, expected', [
    ('<search> solar power </search>', Action('search', text='solar power')),
    ('<answer>\n 42 %\n</answer>', Action('answer', text='42 %')),
    ('<search>中文 查询</search>', Action('search', text='中文 查询')),
    ('<bbox>[1, 2, 3, 4]</bbox>', Action('bbox', box=(1, 2, 3, 4))),
    ('<bbox>[1,2,3,4]</bbox>', Action('bbox', box=(1, 2, 3, 4))),
    ('<bbox>\n[ 0.5 ,2., 30.25\t, 4 ]\n</bbox>', Action('bbox', box=(0.5, 2, 30.25, 4))),
    ('<bbox>[+0, 0, .5, 1]</bbox>', Action('bbox', box=(0, 0, 0.5, 1))),
])
def test_actions_without_a_thought(text, expected):
    assert parse_action(text) == expected


def test_thought_is_kept_and_several_are_joined():
    action = parse_action(f'{THOUGHT}\n<think>\nthen answer\n</think> so: <answer>yes</answer>')
    assert action == Action('answer', 'look closer\nthen answer', 'yes')


def test_tags_inside_a_thought_are_no_actions():
    text = '<think>I could <search>a</search> or <bbox>[1,2,3,4]</bbox></think><answer>b</answer>'
    assert parse_action(text).kind == 'answer'
    assert parse_action(text).text == 'b'


def test_first_closed_action_wins_and_what_follows_is_ignored():
    text = f'{THOUGHT}<search>a</search><answer>b</answer><think>'
    assert parse_action(text) == Action('search', 'look closer', 'a')


def test_inside_a_tag_only_its_own_closing_tag_counts():
    text = '<search>a <answer>b</answer> </think> c</search>'
    assert parse_action(text).text == 'a <answer>b</answer> </think> c'


@pytest.mark.parametrize('stray', [
    '</think>', '</search>', '<', '<<', '<bbox', '<bbox/>', '<Answer>'])
def test_what_is_no_opening_tag_is_plain_text(stray):
    assert parse_action(f'{stray}<answer>b</answer>').text == 'b'


@pytest.mark.parametrize('text, reason', [
    ('', 'there is no action'),
    ('Paris', 'there is no action'),
    (THOUGHT, 'there is no action'),
    ('<think>no end <answer>b</answer>', '<think> is not closed'),
    ('<search>no end', '<search> is not closed'),
    ('<search>no end <answer>b</answer>', '<search> is not closed'),
    ('<answer>no end</answer', '<answer> is not closed'),
    ('<bbox>[1,2,3,4]', '<bbox> is not closed'),
    ('<search> \n</search>', 'the query is empty'),
    ('<answer></answer>', 'the answer is empty'),
    ('<bbox>[1,2,3,4] [5,6,7,8]</bbox>', 'there is more than one box'),
    ('<bbox>[1,2,3,4][5,6,7,8]</bbox>', 'there is more than one box'),
    ('<bbox>1, 2, 3, 4</bbox>', 'a box must be written as [x1, y1, x2, y2]'),
    ('<bbox></bbox>', 'a box must be written as [x1, y1, x2, y2]'),
    ('<bbox>[1,2,3]</bbox>', 'a box must be four numbers'),
    ('<bbox>[1,2,3,4,5]</bbox>', 'a box must be four numbers'),
    ('<bbox>[1,2,3,]</bbox>', 'a box must be four numbers'),
    ('<bbox>[1,2,3,x]</bbox>', 'a box must be four numbers'),
    ('<bbox>[1,2,3,4e1]</bbox>', 'a box must be four numbers'),
    ('<bbox>[1,2,3,1_0]</bbox>', 'a box must be four numbers'),
    ('<bbox>[1,2,3,٤]</bbox>', 'a box must be four numbers'),
    ('<bbox>[[1,2,3,4]]</bbox>', 'a box must be four numbers'),
    ('<bbox>[nan,2,3,4]</bbox>', 'the box has a coordinate that is not finite'),
    ('<bbox>[1,2,-Infinity,4]</bbox>', 'the box has a coordinate that is not finite'),
    (f'<bbox>[1,2,3,{"9" * 400}]</bbox>', 'the box has a coordinate that is not finite'),
    ('<bbox>[-1,2,3,4]</bbox>', 'the box has a negative coordinate'),
    ('<bbox>[3,2,3,4]</bbox>', 'the box has no area'),
    ('<bbox>[1,4,3,2]</bbox>', 'the box has no area'),
    ('<bbox [1,2,3,4]</bbox>', '<bbox is not followed by >'),
    ('<bbox image="1">[1,2,3,4]</bbox>', '<bbox> takes no attributes'),
])
def test_invalid_actions_say_why(text, reason):
    action = parse_action(text)
    assert (action.kind, action.reason) == ('invalid', reason)
    assert action.box is None and action.text == ''


def test_an_invalid_action_keeps_its_thought_and_hides_later_actions():
    action = parse_action(f'{THOUGHT}<search></search><answer>b</answer>')
    assert (action.kind, action.thought) == ('invalid', 'look closer')


def test_a_query_may_have_so_many_characters():
    action = parse_action(f'<search> {"中" * 20} </search>', rules=TWENTY)
    assert (action.kind, action.text) == ('search', '中' * 20)
    action = parse_action(f'{THOUGHT}<search>{"a" * 21}</search>', rules=TWENTY)
    assert (action.kind, action.text) == ('invalid', '')
    assert action.reason == 'the query has 21 characters; 20 are allowed'
    assert parse_action(f'<answer>{"a" * 21}</answer>', rules=TWENTY).kind == 'answer'


@pytest.mark.parametrize('attributes, image', [
    ('', None), (' ', None), (' image="1"', 1), (' image = "12" ', 12), (' image="007"', 7)])
def test_image_index_where_it_is_allowed(attributes, image):
    action = parse_action(f'<bbox{attributes}>[1,2,3,4]</bbox>', rules=INDEXED)
    assert (action.kind, action.image, action.box) == ('bbox', image, (1, 2, 3, 4))


@pytest.mark.parametrize('attributes', [
    ' image="0"', ' image="-1"', ' image="1.5"', ' image="a"', ' image=1', ' page="1"',
    ' image="1" image="2"', f' image="{"9" * 5000}"', ' image="٣"'])
def test_other_attributes_are_invalid(attributes):
    action = parse_action(f'<bbox{attributes}>[1,2,3,4]</bbox>', rules=INDEXED)
    assert action.kind == 'invalid' and 'image index' in action.reason


PIECES = st.sampled_from([
    '<think>', '</think>', '<search>', '</search>', '<answer>', '</answer>', '<bbox>', '</bbox>',
    '<bbox ', 'image="2"', '>', '<', '/', '[1,2,3,4]', '[', ']', ',', 'nan', '9' * 30, '中', ' '])


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.lists(PIECES).map(''.join)), st.booleans())
def test_any_string_gives_an_action(text, allow_image_index):
    action = parse_action(text, rules=ActionRules(allow_image_index=allow_image_index))
    assert (action.kind == 'invalid') == bool(action.reason)
    assert (action.kind == 'bbox') == (action.box is not None)
    assert (action.kind in ('search', 'answer')) == bool(action.text)
    assert action.image is None or (allow_image_index and action.image >= 1)
