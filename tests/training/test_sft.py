"""Fine-tuning has its items made ahead of time."""

import threading

import numpy as np

from tests.tasks import small_loop
from vrag_jax.config import parse
from vrag_jax.data.mapped import MappedSequence
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.training.sft import finetune, sft_phase


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
    trained = finetune(space, sft_phase(space.config.sft), space.config.sft, params,
                       MappedSequence(range(6), make))
    name = 'language_model/embed_tokens/embedding'
    assert np.abs(np.asarray(trained[name]) - np.asarray(params[name])).max() > 0
