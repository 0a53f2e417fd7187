"""Blocks are handed out, shared and taken back without one being lost or given twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.sampling.kv_blocks import BlockTable, CachedSequence

PAGES, SIZE = 9, 4


def test_by_hand():
    table = BlockTable(2, PAGES, SIZE)
    sequence = CachedSequence(1)
    assert table.reserve(sequence, 6)
    assert sequence.blocks == [0, 1] and table.free(1) == 7 and table.free(0) == 9
    assert table.places(sequence, 9).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 36]
    sequence.length = 6
    assert table.reserve(sequence, 2) and len(sequence.blocks) == 2
    assert not table.reserve(sequence, 31) and len(sequence.blocks) == 2
    with pytest.raises(ValueError, match='7 tokens of a sequence that has 6'):
        table.fork(sequence, 1, 7)
    [short] = table.fork(sequence, 1, 4)
    assert short.blocks == [0] and short.length == 4 and table.free(1) == 7
    table.release(short)
    copy, other = table.fork(sequence, 2, 6)
    # The first block is shared, the second, half full, is not.
    assert copy.blocks == [0, 2] and other.blocks == [0, 3] and copy.length == 6
    table.release(sequence)
    assert table.free(1) == 6 and sequence.blocks == []
    table.release(copy)
    table.release(other)
    assert table.free(1) == 9


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(['new', 'grow', 'fork', 'release']),
                          st.integers(0, 9), st.integers(0, 14)), max_size=40))
def test_no_block_is_lost_or_written_by_two(steps):
    table, alive = BlockTable(1, PAGES, SIZE), []
    for action, which, count in steps:
        if action == 'new':
            alive.append(CachedSequence(0))
        elif alive:
            sequence = alive[which % len(alive)]
            if action == 'grow' and table.reserve(sequence, count):
                sequence.length += count
            elif action == 'fork':
                alive += table.fork(sequence, count % 3, sequence.length * count // 14) or []
            elif action == 'release':
                table.release(sequence)
                alive.remove(sequence)
        users = Counter(block for s in alive for block in s.blocks)
        assert table.free(0) == PAGES - len(users)
        for s in alive:
            assert len(s.blocks) >= table.needed(s.length)
            # What comes next is written to blocks of its own.
            own = np.unique(table.places(s, len(s.blocks) * SIZE - s.length) // SIZE)
            assert all(users[block] == 1 for block in own.tolist())
