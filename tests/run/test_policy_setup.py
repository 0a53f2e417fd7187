"""From the learner's layout to the sampler's: values, dtypes, and what a device ever holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from vrag_jax.config import parse
from vrag_jax.models.families import preset
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.sharding import RULES, with_rules
from vrag_jax.planning.hlo import parse as parse_hlo
from vrag_jax.run.policy_setup import initial_params, sampling_placement, sampling_shapes
from vrag_jax.run.run_config import RunConfig

SAMPLER = with_rules((('embed', ()), ('mlp', ('fsdp', 'tensor')), ('vocab', ('fsdp', 'tensor'))))
MODEL = preset('tiny', vocab_size=128)


@pytest.fixture(scope='module')
def config():
    values = tiny.get_config()
    values.policy.dtype = 'bfloat16'
    return parse(RunConfig, values)


@pytest.fixture(scope='module')
def mesh():
    return make_mesh({'data': 1, 'fsdp': 4, 'sequence': 1, 'tensor': 2})


@pytest.fixture(scope='module')
def params(config, mesh):
    return initial_params(config, MODEL, mesh, RULES)


@pytest.fixture(scope='module')
def placed(config, mesh, params):
    return sampling_placement(params, config, mesh, mesh, SAMPLER)(params)


def test_products_are_cast_and_all_else_is_as_it_was(params, placed):
    assert placed.keys() == params.keys()
    cast = {path for path in params if placed[path].dtype == jnp.bfloat16}
    assert all(path.endswith(('kernel', 'bias', 'embedding')) for path in cast)
    assert 'language_model/layers/mlp/up_proj/kernel' in cast
    for path, value in params.items():
        np.testing.assert_array_equal(
            np.asarray(placed[path]), np.asarray(value).astype(placed[path].dtype), err_msg=path)


def test_everything_lies_as_the_sampler_wants_it(config, mesh, params, placed):
    shapes = sampling_shapes(params, config, mesh, SAMPLER)
    for path, value in placed.items():
        assert value.sharding.is_equivalent_to(shapes[path].sharding, value.ndim), path
    kernel = placed['language_model/layers/mlp/up_proj/kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    query = placed['language_model/layers/attention/q_proj/kernel']
    assert query.addressable_shards[0].data.size == query.size / 2  # Over `tensor` alone.


def test_no_device_ever_holds_more_of_a_parameter_than_it_gets(config, mesh, params):
    shapes = sampling_shapes(params, config, mesh, SAMPLER)
    split = 0
    for path, value in params.items():
        target = shapes[path]
        own = max(np.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize,
                  np.prod(target.sharding.shard_shape(value.shape)) * value.dtype.itemsize)
        if own >= value.nbytes:
            continue  # Small, and whole on every device.
        move = jax.jit(lambda x, dtype=target.dtype: x.astype(dtype),
                       out_shardings=target.sharding)
        module = parse_hlo(move.lower(value).compile().as_text())
        largest = max(array.bytes for computation in module.computations.values()
                      for instruction in computation.instructions.values()
                      for array in instruction.result)
        assert largest <= own, path
        split += value.nbytes
    assert split > 0.85 * sum(x.nbytes for x in params.values())


def test_what_lies_so_already_is_not_copied(config, mesh, placed):
    again = sampling_placement(placed, config, mesh, mesh, SAMPLER)(placed)
    assert all(again[path] is value for path, value in placed.items())


def test_adapters_are_drawn_beside_a_base_that_stays_the_same(config, mesh, params):
    lora = dataclasses.replace(config.policy.lora, rank=2)
    with_adapters = dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, lora=lora))
    both = initial_params(with_adapters, MODEL, mesh, RULES)
    for path, value in params.items():
        np.testing.assert_array_equal(both[path], value, err_msg=path)
    assert all('/lora_' in path for path in both.keys() - params.keys())
