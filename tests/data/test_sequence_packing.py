"""First-fit packing, checked against a plain search and by its properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrag_jax.data.row_packing import pack


def test_by_hand():
    # In order 10, 6, 5, 4, 3, 2: 4 goes behind 6, 3 and 2 behind 5.
    assert pack([5, 6, 3, 4, 2, 10], 10) == [[5], [1, 3], [0, 2, 4]]
    assert pack([], 10) == []


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 50))
def test_first_fit_decreasing(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    row_of = {i: number for number, row in enumerate(rows) for i in row}
    room, want = [], {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [number for number, free in enumerate(room) if free >= lengths[i]]
        if not fitting:
            room.append(row_length)
        want[i] = fitting[0] if fitting else len(room) - 1
        room[want[i]] -= lengths[i]
    assert row_of == want
    assert all(row == sorted(row) for row in rows)


@pytest.mark.parametrize('length', [0, 11])
def test_sequences_that_fit_no_row_are_named(length):
    with pytest.raises(ValueError, match=f'sequence 1 has {length} tokens'):
        pack([10, length], 10)
