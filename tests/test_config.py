"""Config sections become dataclasses; whatever does not fit is named by its path."""

import dataclasses
from collections.abc import Mapping

import ml_collections
import pytest

from vrag_jax.config import ConfigError, parse, with_defaults


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f'lr must be positive, got {self.lr}')


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    name: str = 'run'
    resume: bool = False
    inner: Inner = Inner()
    lengths: tuple[int, ...] = ()
    pairs: tuple[tuple[int, str], ...] = ()
    limit: int | None = None
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    optional: Inner | None = None
    named: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    paths: str | tuple[str, ...] = ''


def test_what_is_missing_takes_the_default():
    assert parse(Outer, {'steps': 3}) == Outer(3)


@pytest.mark.parametrize('wrap', [dict, ml_collections.ConfigDict])
def test_every_kind_of_field(wrap):
    values = {
        'steps': 3, 'name': 'x', 'resume': True, 'inner': {'lr': 0.5, 'betas': (0.8, 0.9)},
        'lengths': [1, 2], 'pairs': ((1, 'a'), [2, 'b']), 'limit': 7, 'shares': {'a': 0.5},
        'optional': {'lr': 2.0}}
    assert parse(Outer, wrap(values)) == Outer(
        3, 'x', True, Inner(0.5, (0.8, 0.9)), (1, 2), ((1, 'a'), (2, 'b')), 7, {'a': 0.5},
        Inner(2.0))


@pytest.mark.parametrize('paths', ['a,b', ('a,b', 'c'), ()])
def test_a_field_of_two_kinds_takes_both(paths):
    assert parse(Outer, {'steps': 1, 'paths': paths}).paths == paths
    assert parse(Outer, ml_collections.ConfigDict({'steps': 1, 'paths': paths})).paths == paths


def test_whole_numbers_are_floats_where_floats_are_asked_for():
    parsed = parse(Outer, {'steps': 1, 'inner': {'lr': 2, 'betas': (0, 1)}, 'shares': {'a': 1}})
    assert [type(x) for x in (parsed.inner.lr, *parsed.inner.betas, parsed.shares['a'])] == [
        float] * 4


def test_defaults_are_filled_in_at_every_depth():
    values = {'steps': 3, 'inner': {'lr': 0.5}, 'named': {'a': {'lr': 2.0}}}
    config = with_defaults(ml_collections.ConfigDict(values), Outer)
    assert config.name == 'run' and config.limit is None and not config.shares
    assert config.inner.to_dict() == {'lr': 0.5, 'betas': (0.9, 0.95)}
    assert config.named.a.to_dict() == {'lr': 2.0, 'betas': (0.9, 0.95)}
    assert parse(Outer, config) == parse(Outer, values)


def test_what_does_not_fit_is_left_for_parse():
    config = with_defaults(ml_collections.ConfigDict({'inner': 3, 'stepz': 4}), Outer)
    assert 'steps' not in config and config.inner == 3 and config.stepz == 4


def test_none_is_only_for_optional_fields():
    parsed = parse(Outer, {'steps': 1, 'limit': None, 'optional': None})
    assert parsed.limit is None and parsed.optional is None


@pytest.mark.parametrize(('values', 'message'), [
    ({}, r'^config\.steps: must be given'),
    ({'steps': 1, 'step': 2}, r"^config\.step: no such field.*'steps'"),
    ({'steps': 1, 'inner': {'rate': 1.0}}, r'^config\.inner\.rate: no such field'),
    ({'steps': 1.5}, r'^config\.steps: expected int, got 1\.5'),
    ({'steps': '1'}, r"^config\.steps: expected int, got '1'"),
    ({'steps': True}, r'^config\.steps: expected int, got True'),
    ({'steps': None}, r'^config\.steps: expected int, got None'),
    ({'steps': 1, 'resume': 1}, r'^config\.resume: expected bool, got 1'),
    ({'steps': 1, 'name': 5}, r'^config\.name: expected str, got 5'),
    ({'steps': 1, 'limit': 'many'}, r"^config\.limit: expected int, got 'many'"),
    ({'steps': 1, 'inner': 3}, r'^config\.inner: expected a section, got 3'),
    ({'steps': 1, 'inner': {'lr': True}}, r'^config\.inner\.lr: expected float, got True'),
    ({'steps': 1, 'inner': {'betas': (0.9,)}}, r'^config\.inner\.betas: expected 2 values'),
    ({'steps': 1, 'lengths': '12'}, r"^config\.lengths: expected a tuple, got '12'"),
    ({'steps': 1, 'lengths': 12}, r'^config\.lengths: expected a tuple, got 12'),
    ({'steps': 1, 'lengths': (1, 'b')}, r"^config\.lengths\[1\]: expected int, got 'b'"),
    ({'steps': 1, 'pairs': ((1, 'a'), (2, 3))}, r'^config\.pairs\[1\]\[1\]: expected str, got 3'),
    ({'steps': 1, 'paths': 3},
     r'^config\.paths: expected str, got 3; or config\.paths: expected a tuple, got 3$'),
    ({'steps': 1, 'paths': ('a', 3)}, r'config\.paths\[1\]: expected str, got 3$'),
    ({'steps': 1, 'paths': None}, r'^config\.paths: must not be None'),
    ({'steps': 1, 'shares': {'a': 'b'}}, r"^config\.shares\.a: expected float, got 'b'"),
    ({'steps': 1, 'shares': 3}, r'^config\.shares: expected a section, got 3'),
    ({'steps': 1, 'inner': {'lr': -1.0}}, r'^config\.inner: lr must be positive, got -1'),
    ({'steps': 1, 'optional': {'lr': 0.0}}, r'^config\.optional: lr must be positive'),
])
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(Outer, values)


def test_messages_begin_with_the_name_of_the_root():
    with pytest.raises(ConfigError, match=r'^learner\.lr: expected float'):
        parse(Inner, {'lr': 'fast'}, 'learner')


def test_errors_of_configs_are_value_errors():
    assert issubclass(ConfigError, ValueError)
