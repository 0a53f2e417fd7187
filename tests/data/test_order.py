"""The order in which a phase goes through its items."""

import numpy as np
import pytest

from vrag_jax.data import order as orders
from vrag_jax.data.order import epoch_slice, host_rng


@pytest.mark.parametrize(('count', 'size'), [(10, 4), (7, 7), (3, 8), (100, 32)])
def test_every_epoch_is_an_order_of_its_own(count, size):
    got = np.concatenate([epoch_slice(count, size, step, 5, 'sft') for step in range(9)])
    for epoch in range(-(-len(got) // count)):
        order = host_rng(5, 'sft/order', epoch).permutation(count)
        part = got[epoch * count : (epoch + 1) * count]
        np.testing.assert_array_equal(part, order[: len(part)])
    assert all(type(index) is int for index in epoch_slice(count, size, 0, 5, 'sft'))


def test_an_epoch_is_drawn_once(monkeypatch):
    drawn = []
    monkeypatch.setattr(orders, 'host_rng', lambda *place: drawn.append(place) or host_rng(*place))
    for step in range(50):  # Ten epochs.
        epoch_slice(160, 32, step, 11, 'drawn once')
    assert drawn == [(11, 'drawn once/order', epoch) for epoch in range(10)]
