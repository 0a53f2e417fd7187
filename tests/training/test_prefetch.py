"""Items made by several threads, ahead of time, are those of one thread in its time."""

import threading

import numpy as np
import pytest

from vrag_jax.data.mapped import MappedSequence
from vrag_jax.data.order import epoch_slice
from vrag_jax.training.prefetch import Ahead

COUNT, SIZE, TOTAL = 10, 4, 12


def order(step):
    return epoch_slice(COUNT, SIZE, step, 3, 'ahead')


def drawn(number, _):
    """An item whose bits tell which it is; some take longer than others."""
    rng = np.random.default_rng(number)
    threading.Event().wait(0.01 * (number % 3))
    return rng.normal(size=5)


@pytest.mark.parametrize(('threads', 'steps', 'first'), [
    (1, 0, 0), (3, 1, 0), (5, 4, 0), (4, 2, 7)])
def test_order_and_bits_are_those_of_one_thread(threads, steps, first):
    items = MappedSequence(range(COUNT), drawn)
    with Ahead(items, order, TOTAL, threads, steps) as ahead:
        for step in range(first, TOTAL):
            got = ahead(step)
            np.testing.assert_array_equal(got, [items[i] for i in order(step)])


@pytest.mark.parametrize('steps', [0, 1, 3])
def test_items_are_made_no_more_than_some_steps_ahead(steps):
    made, all_made = [], threading.Condition()

    def make(number, _):
        with all_made:
            made.append(number)
            all_made.notify()

    with Ahead(MappedSequence(range(COUNT), make), order, TOTAL, 4, steps) as ahead:
        for step in range(TOTAL):
            ahead(step)
            expected = SIZE * min(step + 1 + steps, TOTAL)
            with all_made:
                assert all_made.wait_for(lambda n=expected: len(made) >= n, 20)
                assert len(made) == expected


def test_threads_make_items_at_the_same_time():
    together = threading.Barrier(4)
    items = MappedSequence(range(COUNT), lambda number, _: together.wait(20) and number)
    with Ahead(items, order, 3, 4, 0) as ahead:
        for step in range(3):
            ahead(step)


def test_steps_come_one_after_the_other():
    with (Ahead(range(COUNT), order, TOTAL, 2, 2) as ahead,
          pytest.raises(ValueError, match='step 1 comes next, not 2')):
        ahead(0)
        ahead(2)


def test_an_error_comes_in_the_step_whose_item_it_is_of():
    """The steps before are taken, and no thread is left."""
    broken = order(5)[2]
    first = next(step for step in range(TOTAL) if broken in order(step))

    def make(number, _):
        if number == broken:
            raise FileNotFoundError(f'page {number}')
        return number

    taken = []
    with (pytest.raises(FileNotFoundError, match=f'page {broken}'),
          Ahead(MappedSequence(range(COUNT), make), order, TOTAL, 3, 4) as ahead):
        for step in range(TOTAL):
            taken.append((step, ahead(step)))
    assert taken == [(step, list(order(step))) for step in range(first)]
    assert not [t for t in threading.enumerate() if t.name.startswith('prepare')]
