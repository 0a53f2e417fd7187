"""Values come back as they were, and nothing but values does."""

import dataclasses
import enum
import math
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vrag_jax.parallel.encoding import decode, encode


class Kind(enum.Enum):
    SEARCH = 'search'
    ANSWER = 'answer'


@dataclasses.dataclass(frozen=True)
class Step:
    kind: Kind
    box: tuple[float, ...] | None
    tokens: np.ndarray

    def __post_init__(self):
        assert self.kind is not Kind.ANSWER or self.box is None


@dataclasses.dataclass
class Path:
    steps: list[Step]
    notes: dict[Any, Any]
    length: int = dataclasses.field(init=False, default=0)


TYPES = (Kind, Step, Path)


def back(value, types=TYPES):
    return decode(encode(value, types), types)


@pytest.mark.parametrize('value', [
    None, True, 0, -(2**70), 1.5, math.inf, 'ä\x00', b'', b'\x00\xff', [], (), {},
    [1, (2, [3, (4,)]), {'a': (5,), 6: {'dict': [7], 'tuple': 8, 'blob': 9}, None: True}]])
def test_plain_values(value):
    copy = back(value)
    assert copy == value and type(copy) is type(value)
    assert repr(copy) == repr(value)  # Also inside: 1 is not True, a tuple no list.


@pytest.mark.parametrize('array', [
    np.arange(6, dtype=np.int32).reshape(2, 3).T, np.zeros((0, 4), np.float16), np.array(7.0),
    np.array([True, False]), np.array([np.nan, -0.0]), np.ones(3, jnp.bfloat16),
    np.ones(2, jnp.float8_e4m3fn), np.array([1 + 2j], np.complex64), np.float32(0.1),
    np.uint8(200), np.ones(1, jnp.bfloat16)[0]], ids=lambda a: f'{a.dtype}{a.shape}')
def test_arrays_and_scalars(array):
    copy = back([array])[0]
    assert type(copy) is type(array) and copy.dtype == array.dtype
    assert copy.shape == array.shape and copy.tobytes() == array.tobytes()
    if isinstance(copy, np.ndarray):
        assert copy.flags.writeable


def test_dataclasses_enums_and_images():
    image = Image.fromarray(np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3))
    path = Path([Step(Kind.SEARCH, (0.5, 1.0), np.arange(3)), Step(Kind.ANSWER, None, np.ones(1))],
                {'image': image, 'again': image})
    path.length = 2
    copy = back(path)
    assert [type(s) for s in copy.steps] == [Step, Step]
    assert [s.kind for s in copy.steps] == [Kind.SEARCH, Kind.ANSWER]
    assert copy.steps[0].box == (0.5, 1.0) and copy.length == 2
    np.testing.assert_array_equal(copy.steps[0].tokens, [0, 1, 2])
    assert copy.notes['image'].size == (5, 2) and copy.notes['image'].mode == 'RGB'
    assert copy.notes['image'].tobytes() == image.tobytes()
    # Written once, so it is one image again.
    assert copy.notes['again'] is copy.notes['image']


def test_what_stands_twice_is_written_once():
    array = np.zeros(10_000)
    assert len(encode([array] * 50)) < len(encode([array])) + 10_000


@pytest.mark.parametrize('value,path', [
    ({'a': [0, {1, 2}]}, r"value\['a'\]\[1\]: set"), (np.array(['text']), 'value: ndarray'),
    (np.array([object()]), 'value: ndarray'), (np.zeros(2, 'i4, f4'), 'value: ndarray'),
    (np.zeros(2, '>f4'), 'value: ndarray'), (print, 'value: builtin'),
    ([Kind.SEARCH], r'value\[0\]: Kind'), (Image.new('P', (2, 2)), 'value: Image')])
def test_other_values_are_refused_by_their_place(value, path):
    with pytest.raises(TypeError, match=path):
        encode(value)


def test_types_that_are_not_expected_are_not_made():
    with pytest.raises(ValueError, match='Kind was sent, but only'):
        decode(encode(Kind.SEARCH, [Kind]), [Step])


def test_pickles_are_not_read():
    with pytest.raises(ValueError):
        decode(pickle.dumps([1, 2]))
