"""Checkpoints give back every array, random state and place in the data, on any mesh."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrag_jax.learner.checkpoint import Checkpointer
from vrag_jax.learner.optimizer import OptimizerConfig, make_optimizer
from vrag_jax.learner.train_state import (
    TrainState,
    create_train_state,
    partition,
    train_state_shardings,
)
from vrag_jax.parallel.mesh import make_mesh

OPTIMIZER = make_optimizer(OptimizerConfig(lr=0.1), 10)
FROZEN = '^visual/'
SHAPES = {'language_model/embed_tokens/embedding': (8, 4),
          'language_model/layers/mlp/gate_proj/kernel': (2, 4, 6),
          'visual/merger/norm/scale': (5,)}
EMBEDDING = 'language_model/embed_tokens/embedding'
KEY = np.array([7, 2**31 + 5], np.uint32)
HOST = {'seed': 3, 'data_position': 12, 'generator': {'state': 2**70, 'name': 'PCG64'}}


def make_state(steps: int, shape=None, shapes=SHAPES, frozen=0.0) -> TrainState:
    """State after some updates by random gradients, on one device or on a mesh."""
    rng = np.random.default_rng(steps)
    params = {k: rng.normal(size=size).astype(np.float32) for k, size in shapes.items()}
    # Frozen parameters are those of the policy that training started from.
    params |= {k: np.linspace(frozen, 1, math.prod(v.shape), dtype=np.float32).reshape(v.shape)
               for k, v in params.items() if k.startswith('visual/')}
    mesh = make_mesh(shape) if shape else make_mesh({}, devices=jax.devices()[:1])
    state = create_train_state(params, OPTIMIZER, FROZEN)
    opt_state, step = state.opt_state, jnp.asarray(steps, jnp.int32)
    for _ in range(steps):
        gradients = {k: rng.normal(size=v.shape) for k, v in state.trainable.items()}
        _, opt_state = OPTIMIZER.update(gradients, opt_state, state.trainable)
    return jax.device_put(TrainState(state.trainable, state.frozen, opt_state, step),
                          train_state_shardings(params, OPTIMIZER, FROZEN, mesh))


def assert_equal(got: TrainState, want: TrainState):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=str(path))


@pytest.fixture
def checkpointer(tmp_path):
    made = Checkpointer(tmp_path / 'phase')
    yield made
    made.close()


def test_everything_comes_back(checkpointer):
    state = make_state(2)
    assert np.abs(jax.tree.leaves(state.opt_state)[-1]).max() > 0
    checkpointer.save(state, KEY, HOST)
    restored = checkpointer.restore(make_state(0))
    assert_equal(restored.state, state)
    np.testing.assert_array_equal(restored.device_key, KEY)
    assert restored.device_key.dtype == np.uint32
    assert restored.host == HOST


@pytest.mark.parametrize(('saved_on', 'restored_on'), [
    (None, {'fsdp': 4, 'tensor': 2}), ({'fsdp': 2, 'tensor': 2, 'data': 2}, None),
    ({'data': 8}, {'fsdp': 8})])
def test_a_checkpoint_may_be_restored_on_another_mesh(checkpointer, saved_on, restored_on):
    state, like = make_state(1, saved_on), make_state(0, restored_on)
    checkpointer.save(state, KEY, HOST)
    restored = checkpointer.restore(like).state
    assert_equal(restored, state)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding == b.sharding, True),
                 restored, like)


def test_the_newest_is_restored_and_older_ones_are_dropped(checkpointer, tmp_path):
    assert checkpointer.latest is None
    for steps in (1, 2, 3):
        checkpointer.save(make_state(steps), KEY, {'step': steps})
    assert checkpointer.latest == 3
    assert checkpointer.restore(make_state(0)).host == {'step': 3}
    assert_equal(checkpointer.restore(make_state(0), step=2).state, make_state(2))
    assert {path.name for path in (tmp_path / 'phase').iterdir()} == {'2', '3'}


def test_a_step_that_was_saved_is_left_alone(checkpointer):
    checkpointer.save(make_state(1), KEY, {'run': 'first'})
    checkpointer.save(make_state(1), KEY, {'run': 'second'})
    assert checkpointer.restore(make_state(0)).host == {'run': 'first'}


def test_what_a_killed_run_was_writing_is_ignored(tmp_path):
    directory = tmp_path / 'phase'
    first = Checkpointer(directory)
    first.save(make_state(1), KEY, HOST)
    first.close()
    # While it is written a checkpoint lies under a temporary name.
    partial = directory / '2.orbax-checkpoint-tmp-1'
    shutil.copytree(directory / '1', partial)
    shutil.rmtree(partial / 'host')
    second = Checkpointer(directory)
    assert second.latest == 1
    assert_equal(second.restore(make_state(0)).state, make_state(1))
    second.save(make_state(2), KEY, HOST)
    assert_equal(second.restore(make_state(0)).state, make_state(2))
    second.close()


@pytest.mark.parametrize('shape', [None, {'fsdp': 8}])
def test_other_frozen_parameters_are_refused(checkpointer, shape):
    checkpointer.save(make_state(1), KEY, HOST)
    with pytest.raises(ValueError, match='another frozen visual/merger/norm/scale'):
        checkpointer.restore(make_state(0, shape, frozen=1e-7))


def test_frozen_parameters_are_not_saved(checkpointer, tmp_path):
    shapes = SHAPES | {'visual/blocks/qkv/kernel': (2, 500, 500)}
    checkpointer.save(make_state(1, shapes=shapes), KEY, HOST)
    assert sum(f.stat().st_size for f in tmp_path.rglob('*') if f.is_file()) < 500 * 500


def test_without_a_checkpoint_there_is_an_error(checkpointer, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / 'phase')):
        checkpointer.restore(make_state(0))


def test_a_checkpoint_of_another_model_is_refused_by_name(checkpointer):
    checkpointer.save(make_state(1), KEY, HOST)
    with pytest.raises(ValueError, match=rf'{EMBEDDING} has shape \(8, 4\).* \(16, 4\) here'):
        checkpointer.restore(make_state(0, shapes={**SHAPES, EMBEDDING: (16, 4)}))
    with pytest.raises(ValueError, match=r'lm_head/kernel has shape \(missing\)'):
        checkpointer.restore(make_state(0, shapes={**SHAPES, 'lm_head/kernel': (4, 8)}))


def test_partition_by_path():
    params = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    trainable, frozen = partition(params, FROZEN)
    assert set(frozen) == {'visual/merger/norm/scale'}
    assert set(trainable) | set(frozen) == set(SHAPES)
    assert partition(params, '') == (params, {})
