"""Normalisation, exact match and ANLS of answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.rewards.answer_matching import anls, exact_match, normalise, token_f1


@pytest.mark.parametrize('text, expected', [
    ('  The  Eiffel\tTower. ', 'eiffel tower'),
    ('Straße', 'strasse'),
    ('U.S.A.', 'usa'),
    ("don't", 'dont'), ('don’t', 'dont'),
    ('solar/wind', 'solar wind'), ('solar & wind', 'solar wind'),
    ('a cat and an owl', 'cat and owl'),
    ('Panel A', 'panel a'), ('A', 'a'), ('The', 'the'),
    ('1,234,567.50', '1234567.50'), ('12,34', '12 34'), ('1, 234', '1 234'),
    ('45%', '45'), ('45 %', '45'), ('45 percent', '45'), ('45 per cent', '45'),
    ('45％', '45'), ('percentage', 'percentage'),
    ('-5', '-5'), ('−5', '-5'), ('(-.5)', '-.5'), ('2019-2020', '2019 2020'), ('3.5.', '3.5'),
    ('北京，２０２０ 年。', '北京2020年'), ('收入 为 5 万', '收入为5万'),
    ('...', '...'), ('', ''), (' % ', '%'),
])
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize('answer, references, expected', [
    ('the 1,200 %', ['1200'], 1.0),
    ('12.5', ['125'], 0.0),
    ('5', ['-5'], 0.0),
    ('Panel A', ['panel', 'panel b'], 0.0),
    ('NYC', ['New York City', 'nyc'], 1.0),
    ('中 国', ['中国'], 1.0),
    ('', ['...'], 0.0),
    ('x', [], 0.0),
])
def test_exact_match(answer, references, expected):
    assert exact_match(answer, references) == expected


@pytest.mark.parametrize('answer, references, expected', [
    ('hello', ['hello'], 1.0),
    # One of five letters differs.
    ('hallo', ['hello'], 0.8),
    # The nearest reference counts.
    ('hallo', ['goodbye', 'hello'], 0.8),
    # Distance 2 of 4 is not below the threshold of 0.5.
    ('abcd', ['abxy'], 0.0),
    # kitten -> sitting: 3 edits of 7 letters.
    ('Kitten', ['sitting!'], 4 / 7),
    ('ab', ['abcd'], 0.0),
    ('x', [], 0.0), ('', [''], 1.0),
])
def test_anls_by_hand(answer, references, expected):
    assert anls(answer, references) == pytest.approx(expected)


def test_threshold_of_anls():
    assert anls('abcd', ['abxy'], threshold=0.6) == 0.5
    assert anls('hallo', ['hello'], threshold=0.2) == 0.0


def recursive_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(recursive_distance(a[1:], b) + 1, recursive_distance(a, b[1:]) + 1,
               recursive_distance(a[1:], b[1:]) + (a[0] != b[0]))


@settings(deadline=None)
@given(st.text('abc', max_size=5), st.text('abc', max_size=5))
def test_anls_is_the_recursive_definition(a, b):
    distance = recursive_distance(a, b) / max(len(a), len(b), 1)
    assert anls(a, [b]) == (1 - distance if distance < 0.5 else 0.0)


@pytest.mark.parametrize('answer, references, expected', [
    ('the red whale', ['red whale'], 1.0),
    ('a big red whale', ['red whale'], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ('red red', ['red'], 2 * (1 / 2) * 1 / (1 / 2 + 1)),
    ('blue', ['red', 'blue sea'], 2 / 3),
    ('北京市', ['北京'], 4 / 5),
    ('诞生于2014年', ['2014年'], 2 * 2 / (5 + 2)),
    ('12.5', ['12'], 0.0), ('', ['red'], 0.0), ('red', [], 0.0)])
def test_f1_of_words_and_characters(answer, references, expected):
    assert token_f1(answer, references) == pytest.approx(expected)
