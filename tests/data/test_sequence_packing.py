"""First-fit packing, checked against a plain search and by its properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrag_jax.data.packing import pack


def test_by_hand():
    # 5 opens a row, 6 does not fit behind it; 3 goes behind 5, 4 behind 6, 2 behind 5 and 3.
    assert pack([5, 6, 3, 4, 2, 10], 10) == [[0, 2, 4], [1, 3], [5]]
    assert pack([], 10) == []


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 50))
def test_first_fit(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for number, row in enumerate(rows):
        assert row == sorted(row)
        assert sum(lengths[i] for i in row) <= row_length
        for i in row:
            # When sequence i came, no earlier row had room for it.
            for earlier in rows[:number]:
                held = sum(lengths[j] for j in earlier if j < i)
                assert held + lengths[i] > row_length


@pytest.mark.parametrize('length', [0, 11])
def test_sequences_that_fit_no_row_are_named(length):
    with pytest.raises(ValueError, match=f'sequence 1 has {length} tokens'):
        pack([10, length], 10)
