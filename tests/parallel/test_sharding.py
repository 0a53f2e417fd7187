"""Sharding rules: which dimension of which array is split over what.

An abstract mesh stands for devices that are not there.
"""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vrag_jax.models.common.axes import PARAMETER_AXES
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.parallel.sharding import (
    RULES,
    batch_sharding,
    constrain,
    devices_along,
    sharded_over,
    spec,
    tree_shardings,
    with_rules,
)

AXES = ('data', 'fsdp', 'sequence', 'tensor')
# As `make_mesh` has it; the default is another one in newer releases of JAX.
AUTO = (AxisType.Auto,) * 4
MESH = AbstractMesh((2, 4, 1, 2), AXES, axis_types=AUTO)
LAYER = 'language_model/layers'


def spec_of(path: str, *shape: int, rules=RULES, axes=PARAMETER_AXES) -> PartitionSpec:
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
    return tree_shardings(tree, MESH, rules, axes)[path].spec


@pytest.mark.parametrize('path, shape, expected', [
    (f'{LAYER}/attention/q_proj/kernel', (3, 64, 32), (None, 'fsdp', 'tensor')),
    (f'{LAYER}/mlp/up_proj/kernel', (3, 64, 32), (None, 'fsdp', 'tensor')),
    (f'{LAYER}/attention/o_proj/kernel', (3, 32, 64), (None, 'tensor', 'fsdp')),
    (f'{LAYER}/mlp/down_proj/kernel', (3, 32, 64), (None, 'tensor', 'fsdp')),
    ('visual/blocks/qkv/kernel', (3, 64, 192), (None, 'fsdp', 'tensor')),
    ('visual/blocks/proj/kernel', (3, 64, 64), (None, 'tensor', 'fsdp')),
    ('language_model/embed_tokens/embedding', (400, 64), ('tensor', 'fsdp')),
    ('lm_head/kernel', (64, 400), ('fsdp', 'tensor')),
])
def test_matrices_are_split(path, shape, expected):
    assert spec_of(path, *shape) == PartitionSpec(*expected)


@pytest.mark.parametrize('path, shape', [
    (f'{LAYER}/attention/q_proj/bias', (3, 64)), (f'{LAYER}/input_norm/scale', (3, 64)),
    ('step', ())])
def test_norms_biases_and_scalars_are_replicated(path, shape):
    assert spec_of(path, *shape) == PartitionSpec()


def test_a_dimension_that_does_not_divide_is_replicated_alone():
    # fsdp is 4 and tensor 2.
    path = f'{LAYER}/attention/q_proj/kernel'
    assert spec_of(path, 3, 62, 32) == PartitionSpec(None, None, 'tensor')
    assert spec_of(path, 3, 64, 31) == PartitionSpec(None, 'fsdp', None)
    assert spec_of(path, 3, 62, 31) == PartitionSpec(None, None, None)


def test_the_first_entry_found_decides():
    axes = (('b$', ('mlp',)), ('a', ('embed',)))
    assert spec_of('a/b', 8, axes=axes) == PartitionSpec('tensor')
    assert spec_of('a/c', 8, axes=axes) == PartitionSpec('fsdp')
    assert spec_of('c', 8, axes=axes) == PartitionSpec()


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"a has shape \(8,\), but its axes are"):
        spec_of('a', 8, axes=(('a', (None, 'embed')),))
    with pytest.raises(ValueError, match="the rule of 'mlp' names the mesh axis 'model'"):
        spec_of('a', 8, axes=(('a', ('mlp',)),), rules={'mlp': 'model'})
    with pytest.raises(ValueError, match="no logical axis 'size'"):
        with_rules([('size', ['fsdp'])])


def test_other_rules_are_another_layout_of_the_same_mesh():
    rules = with_rules([('embed', ()), ('mlp', ('fsdp', 'tensor'))])
    path = f'{LAYER}/mlp/up_proj/kernel'
    assert spec_of(path, 3, 64, 32) == PartitionSpec(None, 'fsdp', 'tensor')
    assert spec_of(path, 3, 64, 32, rules=rules) == PartitionSpec(None, None, ('fsdp', 'tensor'))
    assert devices_along('mlp', MESH, rules) == 8 and devices_along('mlp', MESH) == 2


def test_a_mesh_axis_splits_an_array_once():
    rules = with_rules([('mlp', ('fsdp', 'tensor'))])
    # Rows have `fsdp` already.
    assert spec(('batch', None, 'mlp'), (8, 3, 16), MESH, rules) == PartitionSpec(
        ('data', 'fsdp'), None, 'tensor')


@pytest.mark.parametrize('path, shape, expected', [
    (f'{LAYER}/mlp/up_proj/kernel/qvalue', (3, 64, 32), (None, 'fsdp', 'tensor')),
    # One scale of a column.
    (f'{LAYER}/mlp/up_proj/kernel/scale', (3, 1, 32), (None, None, 'tensor')),
    (f'{LAYER}/mlp/down_proj/lora_a', (3, 32, 5), (None, 'tensor', None)),
    (f'{LAYER}/attention/q_proj/lora_b', (3, 5, 32), (None, None, 'tensor')),
])
def test_quantised_kernels_and_adapters_lie_like_their_kernels(path, shape, expected):
    assert spec_of(path, *shape) == PartitionSpec(*expected)


def test_nnx_states_keep_their_structure():
    class Block(nnx.Module):
        def __init__(self):
            self.layers = nnx.Dict(q_proj=nnx.Linear(8, 4, rngs=nnx.Rngs(0)))

    state = nnx.eval_shape(lambda: nnx.state(Block()))
    axes = (('layers/q_proj/kernel$', ('embed', 'heads')),)
    shardings = tree_shardings(state, MESH, RULES, axes)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    kernel = shardings['layers']['q_proj']['kernel'].get_value()
    assert kernel.spec == PartitionSpec('fsdp', 'tensor')


def test_rows_of_a_batch_are_split_over_data_and_fsdp():
    batch = {
        'tokens': jax.ShapeDtypeStruct((16, 10), jnp.int32),
        'position_ids': jax.ShapeDtypeStruct((3, 16, 10), jnp.int32),
        'odd': jax.ShapeDtypeStruct((12, 10), jnp.int32),
        'scale': jax.ShapeDtypeStruct((), jnp.float32),
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, batch_sharding(MESH, batch))
    rows = ('data', 'fsdp')
    assert specs == {
        'tokens': PartitionSpec(rows, 'sequence'),
        'position_ids': PartitionSpec(None, rows, 'sequence'),
        'odd': PartitionSpec(None, 'sequence'), 'scale': PartitionSpec()}


@pytest.mark.parametrize('name', ['qwen2_5_vl_3b', 'qwen2_5_vl_7b', 'qwen2_5_vl_72b'])
def test_a_device_holds_its_share_of_a_published_model(name):
    mesh = AbstractMesh((1, 4, 1, 2), AXES, axis_types=AUTO)
    state = nnx.eval_shape(lambda: nnx.state(Qwen2_5_VL(preset(name), rngs=nnx.Rngs(0))))
    shardings = tree_shardings(state, mesh, RULES, PARAMETER_AXES)
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True))
    total = sum(math.prod(leaf.shape) for leaf, _ in leaves)
    share = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in leaves)
    # Norms, biases and the patch embedding are replicated; the rest is in eight.
    assert total / 8 <= share < total / 8 * 1.02


def test_a_constraint_splits_what_divides_and_nothing_without_a_mesh():
    x = jnp.ones((8, 3))
    assert constrain(x, ('batch', 'mlp')) is x
    with sharded_over(None):
        assert constrain(x, ('batch', 'mlp')) is x
    with sharded_over(MESH):
        traced = jax.make_jaxpr(lambda x: constrain(x, ('batch', 'mlp')))(x)
    (equation,) = traced.eqns
    assert equation.params['sharding'].spec == PartitionSpec(('data', 'fsdp'), None)


def test_a_mesh_of_explicit_axes_is_refused():
    mesh = AbstractMesh((2, 4, 1, 2), AXES, axis_types=(AxisType.Auto,) * 3 + (AxisType.Explicit,))
    with pytest.raises(ValueError, match="expected a mesh of Auto axes.*'tensor': .*Explicit"):
        with sharded_over(mesh):
            pass


def test_rules_are_in_use_only_inside():
    with sharded_over(MESH, with_rules([('batch', ('data',))])):
        assert devices_along('batch', jax.sharding.get_abstract_mesh()) == 2
    with sharded_over(MESH):
        assert devices_along('batch', jax.sharding.get_abstract_mesh()) == 8
    assert devices_along('batch', jax.sharding.get_abstract_mesh()) == 1
