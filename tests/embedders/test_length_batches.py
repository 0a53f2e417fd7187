"""Batches hold each sequence once, within their bounds, in few shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrag_jax.embedders.length_batches import SHORTEST, plan


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000), st.integers(1, 4))
def test_each_sequence_is_in_one_batch_that_holds_it(lengths, batch_tokens, multiple):
    batches = list(plan(lengths, batch_tokens, multiple))
    assert sorted(i for batch in batches for i in batch.items) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.items) <= batch.rows and batch.rows % multiple == 0
        assert max(lengths[i] for i in batch.items) <= batch.length
        assert batch.rows * batch.length <= batch_tokens or batch.rows == multiple
    # All but the last are full.
    assert all(len(batch.items) == batch.rows for batch in batches[:-1])


def test_a_batch_that_is_not_full_has_fewer_rows():
    assert [b.rows for b in plan([16] * 3, 16 * 64)] == [4]
    assert [b.rows for b in plan([16] * 70, 16 * 64)] == [64, 16]
    assert [b.rows for b in plan([16], 16 * 64, multiple=8)] == [8]


def test_lengths_are_bucketed_up_to_the_longest():
    assert [b.length for b in plan([1], 64)] == [SHORTEST]
    assert [b.length for b in plan([100], 64)] == [128]
    assert [b.length for b in plan([100], 64, longest=110)] == [110]


def test_rows_are_padded_on_the_right():
    batch = next(plan([2, 3], 64))
    sequences = [np.array([7, 8]), np.array([4, 5, 6])]
    padded, mask = batch.pad(sequences, fill=9), batch.mask([2, 3])
    assert padded[0].tolist() == [4, 5, 6] + [9] * 13
    assert padded[1].tolist() == [7, 8] + [9] * 14
    assert mask.sum(1).tolist() == [3, 2] + [0] * (batch.rows - 2)
    assert (padded[~mask] == 9).all()


def test_no_sequence_is_no_batch():
    assert list(plan([], 64)) == []
    with pytest.raises(StopIteration):
        next(plan([], 64))
