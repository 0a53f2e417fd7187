"""The order in which a phase goes through its items, and who makes them."""

import threading

import numpy as np
import pytest

from tests.tasks import small_loop
from vrag_jax.config import parse
from vrag_jax.data.mapped import MappedSequence
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.run.context import RunContext
from vrag_jax.run.settings import RunConfig
from vrag_jax.training import sft as train
from vrag_jax.training.loop import host_rng
from vrag_jax.training.sft import epoch_slice, finetune


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
    monkeypatch.setattr(train, 'host_rng', lambda *place: drawn.append(place) or host_rng(*place))
    for step in range(50):  # Ten epochs.
        epoch_slice(160, 32, step, 11, 'drawn once')
    assert drawn == [(11, 'drawn once/order', epoch) for epoch in range(10)]


def test_fine_tuning_prepares_its_items_in_several_threads(tmp_path):
    config = small_loop.get_config()
    config.sft.update({'steps': 2, 'epochs': 0, 'sequences': 4, 'prepare_threads': 4,
                       'prepare_ahead': 1})
    config.mesh.update({'data': 1, 'tensor': -1})
    space = RunContext(parse(RunConfig, config), tmp_path)
    together = threading.Barrier(4)

    def make(number, _):
        together.wait(60)  # Nothing comes of it unless four are made at the same time.
        length = 8
        return TokenSequence(
            tokens=np.full(length, 5 + number, np.int32), loss_mask=np.ones(length, np.float32),
            position_ids=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
            image_index=np.full(length, -1, np.int32))

    params = space.initial_params()
    trained = finetune(space, params, 'sft', MappedSequence(range(6), make))
    name = 'language_model/embed_tokens/embedding'
    assert np.abs(np.asarray(trained[name]) - np.asarray(params[name])).max() > 0
