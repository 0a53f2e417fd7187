"""Causal attention of packed rows: plain XLA, splash on TPUs, cuDNN's on GPUs."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import NamedSharding, PartitionSpec

from vrag_jax.models.common.layers import ATTENTION_OUTPUT, MASKED
from vrag_jax.parallel.sharding import devices_along, spec_in_use

BACKENDS = ('auto', 'plain', 'splash', 'cudnn')

# Of plain attention. A block is never smaller than what fills a matrix unit.
BLOCKS = 8
SMALLEST_BLOCK = 128
RECOMPUTED_LENGTH = 1024  # Longer sequences keep no scores for the backward pass.

# Of splash attention: tokens of a block, the largest that divides the row.
QUERY_BLOCKS = (1024, 512, 256, 128)
KEY_BLOCKS = (1024, 512, 256, 128)
MOST_PARTIAL_GRADIENTS = 16  # Copies of the queries' gradient in the backward pass.
LANES = 128  # Of a TPU's vector registers: the head size must fill them.

# `(q [B, T, H, d], k and v [B, S, KVH, d], segments of queries [B, T] and of keys [B, S],
# place of the first query) -> [B, T, H, d]`, `T` queries out of `S` tokens.
Local = Callable[..., jax.Array]


def choose_backend(backend: str, platform: str, dtype: jnp.dtype) -> str:
    """Returns how attention is worked out on a platform: 'plain', 'splash' or 'cudnn'.

    Args:
      backend: one of `BACKENDS`; 'auto' is the platform's own.
      platform: see `mesh.device_platform`; cuDNN is CUDA's alone.
      dtype: of queries and keys; cuDNN takes half precision alone.

    Raises:
      ValueError: if the backend is unknown, or asked for where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f'attention must be one of {BACKENDS}, got {backend!r}')
    half = jnp.dtype(dtype).itemsize == 2
    own = {'tpu': 'splash', 'cuda': 'cudnn'}.get(platform, 'plain')
    if backend not in ('auto', 'plain', own):
        raise ValueError(f'attention = {backend!r} does not run on {platform}')
    if backend == 'cudnn' and not half:
        raise ValueError(f"attention = 'cudnn' takes float16 and bfloat16, not {dtype}")
    if backend == 'auto':
        return 'plain' if own == 'cudnn' and not half else own
    return backend


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, backend: str = 'plain',
    interpret: bool = False,
) -> jax.Array:
    """Grouped-query attention to earlier tokens of the same segment.

    On a mesh (`sharding.sharded_over`) each device works out its own rows, heads and
    queries, and has the keys of the whole row.

    Args:
      q: `[B, T, H, head_dim]`; heads of a group are consecutive.
      k, v: `[B, T, KVH, head_dim]`.
      segment_ids: `[B, T]` int32, 0 on padding.
      backend: 'plain', 'splash' or 'cudnn'; splash attention is plain where heads or
        rows do not fill its blocks.
      interpret: whether splash attention's kernels are interpreted, for tests.

    Returns:
      `[B, T, H, head_dim]`; anything finite on padding.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1
    shards = 1 if alone else devices_along('length', mesh)
    own_length, head_dim = q.shape[1] // shards, q.shape[-1]
    if backend == 'splash' and (head_dim % LANES or own_length % LANES):
        backend = 'plain'
    local: Local = {'plain': _plain, 'cudnn': _cudnn}.get(backend, _plain)
    if alone:
        if backend == 'splash':
            return _splash(_splash_kernel(q.shape, 1, 1, interpret), q, k, v, segment_ids,
                           segment_ids)
        out = local(q, k, v, segment_ids, segment_ids, 0)
        return checkpoint_name(out, ATTENTION_OUTPUT)

    k, v = (_repeat_heads(x, q.shape[2], devices_along('heads', mesh)) for x in (k, v))
    rows, places, heads = spec_in_use(('batch', 'length', 'heads'), q.shape[:3])
    if spec_in_use(('batch', None, 'heads'), k.shape[:3])[2] != heads:
        heads = None  # A device would not have the keys of its queries.
    of_queries = PartitionSpec(rows, places, heads)
    of_keys = PartitionSpec(rows, None, heads)
    specs = (of_queries, of_keys, of_keys, PartitionSpec(rows, places), PartitionSpec(rows))
    arrays = (q, k, v, segment_ids, segment_ids)
    # Pallas kernels say nothing of how their results vary over the mesh.
    on_devices = functools.partial(
        jax.shard_map, mesh=mesh, out_specs=of_queries, check_vma=False)
    if backend == 'splash':
        kernel = _splash_kernel(q.shape, devices_along('heads', mesh) if heads else 1,
                                shards if places else 1, interpret)
        of_kernel = kernel.manual_sharding_spec(
            NamedSharding(mesh, PartitionSpec(heads, places)))
        return on_devices(_splash, in_specs=(of_kernel, *specs))(kernel, *arrays)

    def run(q, *rest):
        first = jax.lax.axis_index(places) * q.shape[1] if places else 0
        return local(q, *rest, first)

    return checkpoint_name(on_devices(run, in_specs=specs)(*arrays), ATTENTION_OUTPUT)


def _repeat_heads(x: jax.Array, heads: int, devices: int) -> jax.Array:
    """Repeats key heads where there are fewer than devices, each of which then has its own."""
    kv_heads = x.shape[2]
    if heads % devices or kv_heads % devices == 0 or devices % kv_heads:
        return x
    return jnp.repeat(x, devices // kv_heads, axis=2)


# ---- Plain

def _plain(q, k, v, q_segments, segments, first) -> jax.Array:
    """See `Local`.

    Queries are done in up to `BLOCKS` blocks, each of which looks at the keys up to its
    own end and no further: of eight blocks that is little more than half of all scores.
    Blocks of a long sequence have their scores computed again in the backward pass: a
    `[T, T]` array of them would not fit for the published models.
    """
    length = q.shape[1]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

    # Segments 1 1 2 0 see:   1 0 0 0
    #                         1 1 0 0
    #                         0 0 1 0
    #                         0 0 0 0
    def attend(start: int, q, k, v, own_segment, segments):
        steps = jnp.arange(segments.shape[1])
        same = own_segment[:, :, None] == segments[:, None, :]
        causal = (first + start + jnp.arange(q.shape[1]))[:, None] >= steps
        return grouped_attention(q, k, v, same & causal & (segments > 0)[:, None, :])

    # Where queries of other devices come first, it is not known now which keys come later.
    whole = length == k.shape[2]
    size = block_size(length)
    out = []
    for start in range(0, length, size):
        end = min(start + size, length)
        seen = end if whole else k.shape[2]
        block: Callable[..., jax.Array] = functools.partial(attend, start)
        if k.shape[2] > RECOMPUTED_LENGTH:
            block = jax.checkpoint(block)
        out.append(block(q[:, start:end], k[:, :, :seen], v[:, :, :seen],
                         q_segments[:, start:end], segments[:, :seen]))
    return jnp.concatenate(out, axis=1)


def block_size(length: int) -> int:
    """Returns the queries of a block: a multiple of `SMALLEST_BLOCK`, at most `BLOCKS` of them."""
    return math.ceil(length / (BLOCKS * SMALLEST_BLOCK)) * SMALLEST_BLOCK


def grouped_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention with float32 softmax.

    Args:
      q: `[B, T, H, head_dim]`; heads of a group are consecutive.
      k, v: `[B, KVH, S, head_dim]`.
      mask: `[B, T, S]` bool, whether a query sees a key.

    Returns:
      `[B, T, H, head_dim]`.
    """
    batch, steps, _, size = q.shape
    kv_heads = k.shape[1]
    group = q.shape[2] // kv_heads
    # The queries of a group are the rows of one product with their head's keys:
    # plain batched products, three times as fast on a CPU as with five axes.
    rows = q.reshape(batch, steps, kv_heads, group, size).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, kv_heads, group * steps, size)
    scores = jnp.einsum('bkqd,bksd->bkqs', rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, steps, -1) * size**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    weights = weights.astype(v.dtype).reshape(batch, kv_heads, group * steps, -1)
    out = jnp.einsum('bkqs,bksd->bkqd', weights, v)
    return out.reshape(batch, kv_heads, group, steps, size).transpose(0, 3, 1, 2, 4).reshape(
        q.shape)


# ---- Splash attention, a Pallas kernel for TPUs

def _splash_kernel(
    shape: tuple[int, ...], head_shards: int, query_shards: int, interpret: bool
) -> splash.SplashAttentionKernel:
    """Kernel for queries `[B, T, H, d]`, whose heads and tokens are spread over devices."""
    _, length, heads, _ = shape
    own = length // query_shards
    queries = next(n for n in QUERY_BLOCKS if own % n == 0)
    keys = next(n for n in KEY_BLOCKS if length % n == 0)
    # One backward kernel makes each block of scores once, two make it twice; but it writes
    # the gradient of the queries once for every block of keys.
    fused = length // keys <= MOST_PARTIAL_GRADIENTS
    apart: dict[str, Any] = {} if fused else {'block_q_dq': queries, 'block_kv_dq': keys}
    sizes = splash.BlockSizes(
        block_q=queries, block_kv=keys, block_q_dkv=queries, block_kv_dkv=keys,
        block_kv_dkv_compute=keys, use_fused_bwd_kernel=fused, **apart)
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length))] * heads)
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            mask, block_sizes=sizes, head_shards=head_shards, q_seq_shards=query_shards,
            residual_checkpoint_name=ATTENTION_OUTPUT, interpret=interpret)


def _splash(kernel, q, k, v, q_segments, segments) -> jax.Array:
    """Attention `[B, T, H, d]`.

    What remat saves is the kernel's own output `[B, H, T, d]`, with its normalisers: the
    kernel's backward pass needs both. Named again here, it would be saved twice.
    """
    scaled = (q * q.shape[-1] ** -0.5).astype(q.dtype)
    out = jax.vmap(kernel)(
        scaled.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2),
        segment_ids=jax.vmap(splash.SegmentIds)(q_segments, segments))
    return out.swapaxes(1, 2)


# ---- cuDNN's fused attention

def _cudnn(
    q, k, v, q_segments, segments, first, implementation: Literal['cudnn', 'xla'] = 'cudnn'
) -> jax.Array:
    """See `Local`."""
    same = q_segments[:, :, None] == segments[:, None, :]
    causal = (first + jnp.arange(q.shape[1]))[:, None] >= jnp.arange(k.shape[1])
    return jax.nn.dot_product_attention(
        q, k, v, mask=(same & causal)[:, None], implementation=implementation)
