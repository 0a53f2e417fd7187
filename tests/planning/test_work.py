"""Work of compiled programs against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vrag_jax.planning.work import work


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_a_product_counts_two_for_each_number_it_multiplies():
    assert work(compiled(jnp.dot, zeros(32, 48), zeros(48, 16))).flops == 2 * 32 * 48 * 16


def test_batches_of_products():
    text = compiled(lambda x, y: jnp.einsum('bij,bjk->bik', x, y), zeros(5, 8, 32), zeros(5, 32, 6))
    assert work(text).flops == 2 * 5 * 8 * 32 * 6


def test_a_scan_counts_as_often_as_it_goes_round():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    text = compiled(layers, zeros(16, 64), zeros(7, 64, 64))
    assert work(text).flops == 7 * 2 * 16 * 64 * 64
    # Backwards: the gradients of the activations and of the kernels.
    text = compiled(jax.grad(lambda k, x: layers(x, k).sum()), zeros(7, 64, 64), zeros(16, 64))
    assert work(text).flops == 7 * 3 * 2 * 16 * 64 * 64


def test_a_loop_whose_length_the_data_tell_counts_as_asked_for():
    def until_small(x, y):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ y, x)

    found = work(compiled(until_small, zeros(32, 64), zeros(64, 64)), loop=11)
    assert found.flops == 11 * 2 * 32 * 64 * 64
    assert found.unknown_loops == 1


def test_memory_traffic_of_something_elementwise():
    found = work(compiled(lambda x, y: jnp.sin(x) + y, zeros(1000), zeros(1000)))
    assert found.bytes == 3 * 4000 and found.flops == 0


def test_of_slices_only_what_they_touch_is_traffic():
    def one_row(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i, 1) * 2

    found = work(compiled(one_row, zeros(1000, 64), np.int32(0)))
    assert found.bytes < 4 * 64 * 4


def test_what_is_updated_in_place_is_traffic_of_the_update():
    def put(x, row, i):
        return jax.lax.dynamic_update_slice_in_dim(x, row, i, 0)

    text = compiled(put, zeros(1000, 64), zeros(1, 64), np.int32(0), donate_argnums=0)
    assert work(text).bytes < 6 * 64 * 4


@pytest.fixture(scope='module')
def mesh():
    return Mesh(np.array(jax.devices()[:4]), ('x',))


def test_an_all_reduce_of_partial_sums(mesh):
    def product(x, y):
        return jax.lax.with_sharding_constraint(
            x @ y, NamedSharding(mesh, PartitionSpec()))

    along = NamedSharding(mesh, PartitionSpec(None, 'x'))
    down = NamedSharding(mesh, PartitionSpec('x', None))
    text = compiled(product, zeros(16, 64), zeros(64, 8), in_shardings=(along, down))
    found = work(text)
    assert found.flops == 2 * 16 * 16 * 8  # A quarter of the products on each device.
    exchange = found.collectives['all-reduce']
    assert (exchange.count, exchange.bytes) == (1, 16 * 8 * 4)
    assert exchange.sent == found.sent == 2 * 16 * 8 * 4 * 3 / 4


def test_kernels_gathered_in_a_scan_are_gathered_every_time(mesh):
    def layers(x, kernels):
        def layer(x, kernel):
            kernel = jax.lax.with_sharding_constraint(
                kernel, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ kernel), None
        return jax.lax.scan(layer, x, kernels)[0]

    rows = NamedSharding(mesh, PartitionSpec('x'))
    text = compiled(layers, zeros(16, 64), zeros(6, 64, 64), in_shardings=(
        rows, NamedSharding(mesh, PartitionSpec(None, 'x'))))
    found = work(text).collectives['all-gather']
    # XLA may gather the whole stack at once, in front of the loop.
    assert found.bytes == 6 * 64 * 64 * 4
    assert found.sent == found.bytes * 3 / 4


# As libtpu writes it: products are convolutions, batches windows that skip all others.
CONVOLUTIONS = '''HloModule jit_f, is_scheduled=true

ENTRY %main.5 (x.1: bf16[32,48], y.1: bf16[48,16], a.1: bf16[5,8,32], b.1: bf16[5,32,6]) -> (bf16[32,16], f32[5,8,6]) {
  %x.1 = bf16[32,48]{1,0:T(8,128)(2,1)} parameter(0)
  %y.1 = bf16[48,16]{1,0:T(8,128)(2,1)} parameter(1)
  %a.1 = bf16[5,8,32]{2,1,0:T(8,128)(2,1)} parameter(2)
  %b.1 = bf16[5,32,6]{2,1,0:T(8,128)(2,1)} parameter(3)
  %convolution.1 = bf16[32,16]{1,0:T(8,128)(2,1)} convolution(%x.1, %y.1), dim_labels=bf_io->bf
  %convolution.2 = f32[5,8,6]{2,1,0:T(8,128)} convolution(%a.1, %b.1), window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf
  ROOT %tuple.1 = (bf16[32,16]{1,0}, f32[5,8,6]{2,1,0}) tuple(%convolution.1, %convolution.2)
}
'''  # noqa: E501


def test_products_in_the_form_of_convolutions():
    found = work(CONVOLUTIONS)
    assert found.flops == 2 * 32 * 48 * 16 + 2 * 5 * 8 * 32 * 6
    read_and_written = 2 * (32 * 48 + 48 * 16 + 32 * 16 + 5 * 8 * 32 + 5 * 32 * 6) + 4 * 5 * 8 * 6
    assert found.bytes == read_and_written


SPLASH = '''HloModule jit_g, is_scheduled=true

ENTRY %main.1 (q: bf16[4,1024,128], k: bf16[4,1024,128]) -> bf16[4,1024,128] {
  %q = bf16[4,1024,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[4,1024,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %splash_mha_NAME.3 = bf16[4,1024,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="{\\"block_kv\\": 512, \\"block_q\\": 512, \\"block_kv_dkv\\": 512, \\"block_q_dkv\\": 512, \\"use_fused_bwd_kernel\\": true}"}
}
'''  # noqa: E501


@pytest.mark.parametrize('kernel,products', [('fwd', 2), ('dkv', 5)])
def test_splash_attention_counts_the_blocks_that_the_causal_mask_leaves(kernel, products):
    # Three of four blocks of 512 x 512.
    assert work(SPLASH.replace('NAME', kernel)).flops == products * 2 * 4 * 3 * 512 * 512 * 128


def test_a_kernel_that_is_not_known_is_reported():
    text = SPLASH.replace('splash_mha_NAME', 'mine')
    assert work(text).unknown_kernels == {'mine': 1}


# As XLA writes a product whose operand it passes around in a ring, two parts a round.
RING = '''HloModule jit_h, is_scheduled=true

%body (p.1: (f32[16,16], u32[])) -> (f32[16,16], u32[]) {
  %p.1 = (f32[16,16]{1,0}, u32[]) parameter(0)
  %x.1 = f32[16,16]{1,0} get-tuple-element(%p.1), index=0
  %n.1 = u32[] get-tuple-element(%p.1), index=1
  %two.1 = u32[] constant(2)
  %dot.1 = f32[16,16]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next.1 = u32[] add(%n.1, %two.1)
  ROOT %t.1 = (f32[16,16]{1,0}, u32[]) tuple(%dot.1, %next.1)
}

%condition (p.2: (f32[16,16], u32[])) -> pred[] {
  %p.2 = (f32[16,16]{1,0}, u32[]) parameter(0)
  %limit.1 = u32[] constant(7)
  %n.2 = u32[] get-tuple-element(%p.2), index=1
  ROOT %c.1 = pred[] compare(%n.2, %limit.1), direction=LT
}

ENTRY %main (x: f32[16,16]) -> f32[16,16] {
  %x = f32[16,16]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %t = (f32[16,16]{1,0}, u32[]) tuple(%x, %zero)
  %while.1 = (f32[16,16]{1,0}, u32[]) while(%t), condition=%condition, body=%body
  ROOT %out = f32[16,16]{1,0} get-tuple-element(%while.1), index=0
}
'''


@pytest.mark.parametrize('step,rounds', [(1, 7), (2, 4), (3, 3)])
def test_loops_that_go_on_by_more_than_one(step, rounds):
    found = work(RING.replace('constant(2)', f'constant({step})'))
    assert found.flops == rounds * 2 * 16**3 and found.unknown_loops == 0
