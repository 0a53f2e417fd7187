"""Every way of working out attention gives what plain attention gives."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrag_jax.models.common import attention
from vrag_jax.models.common.attention import causal_attention, choose_backend
from vrag_jax.models.common.layers import REMAT
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.sharding import sharded_over

ROWS, LENGTH, HEADS, KV_HEADS, SIZE = 2, 256, 4, 2, 128


def inputs(dtype=jnp.float32, heads=HEADS, kv_heads=KV_HEADS, rows=ROWS):
    """Queries, keys, values and segments of packed rows with padding."""
    rng = np.random.default_rng(0)
    def draw(count):
        return jnp.asarray(rng.normal(size=(rows, LENGTH, count, SIZE)), dtype)

    segments = np.zeros((rows, LENGTH), np.int32)
    for row in range(rows):
        ends = np.sort(rng.choice(np.arange(8, LENGTH - 8), 3, replace=False))
        segments[row] = np.searchsorted(ends, np.arange(LENGTH), side='right') + 1
        segments[row, ends[-1]:] = 0
    return draw(heads), draw(kv_heads), draw(kv_heads), jnp.asarray(segments)


def brute_force(q, k, v, segments):
    """Softmax over the earlier tokens of the segment, one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    segments = np.asarray(segments)
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        own = h // (q.shape[2] // k.shape[2])
        scores = k[b, seen, own] @ q[b, t, h] / np.sqrt(SIZE)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, seen, own] / weights.sum()
    return out


def value_and_gradients(q, k, v, segments, **options):
    """Attention, and gradients of a weighted sum of it, where there are tokens."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    real = (segments > 0)[..., None, None]

    def loss(q, k, v):
        out = jnp.where(real, causal_attention(q, k, v, segments, **options), 0)
        return jnp.sum(out * weights), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def assert_close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32),
                                   atol=tolerance * np.abs(np.asarray(b, np.float32)).max())


@pytest.fixture(scope='module')
def plain():
    return value_and_gradients(*inputs())


def test_plain_attention_is_a_softmax_over_earlier_tokens_of_the_segment(plain):
    q, k, v, segments = inputs()
    want = np.where(np.asarray(segments > 0)[..., None, None], brute_force(q, k, v, segments), 0)
    np.testing.assert_allclose(plain[0], want, atol=1e-5)


def test_splash_attention_is_plain_attention(plain):
    # The kernels run in an interpreter: there is no TPU.
    assert_close(value_and_gradients(*inputs(), backend='splash', interpret=True), plain, 1e-5)


def test_the_mask_that_cudnn_is_given_makes_plain_attention(plain, monkeypatch):
    """cuDNN needs its GPU; the same call is done by XLA in its place."""
    through_xla = lambda *args: attention_of_call(*args, implementation='xla')  # noqa: E731
    attention_of_call = attention._cudnn
    monkeypatch.setattr(attention, '_cudnn', through_xla)
    assert_close(value_and_gradients(*inputs(), backend='cudnn'), plain, 1e-5)


@pytest.mark.parametrize('shape', [
    {'sequence': 2, 'tensor': 2}, {'data': 2, 'sequence': 4}, {'tensor': 4}])
@pytest.mark.parametrize('backend', ['plain', 'splash', 'cudnn'])
def test_on_a_mesh_it_is_that_of_one_device(plain, shape, backend, monkeypatch):
    call = attention._cudnn
    monkeypatch.setattr(attention, '_cudnn', lambda *a: call(*a, implementation='xla'))
    mesh = make_mesh(shape, jax.devices()[: np.prod(list(shape.values()))])
    with jax.set_mesh(mesh), sharded_over(mesh):
        got = value_and_gradients(*inputs(), backend=backend, interpret=True)
    assert_close(got, plain, 1e-5)


@pytest.mark.parametrize('shape', [None, {'data': 2, 'tensor': 2}, {'sequence': 2, 'tensor': 2}])
@pytest.mark.parametrize('remat', ['attention', 'dots', 'full'])
@pytest.mark.parametrize('backend', ['plain', 'splash', 'cudnn'])
def test_its_output_is_saved_once(backend, remat, shape, monkeypatch):
    call = attention._cudnn
    monkeypatch.setattr(attention, '_cudnn', lambda *a: call(*a, implementation='xla'))
    mesh = None if shape is None else make_mesh(shape, jax.devices()[:4])
    q, k, v, segments = inputs()

    def layer(q, k, v):
        out = causal_attention(2 * q, k, v, segments, backend=backend, interpret=True)
        return jnp.sum(jnp.sin(out))

    printed = io.StringIO()
    with (contextlib.redirect_stdout(printed), jax.set_mesh(mesh) if mesh is not None
          else contextlib.nullcontext(), sharded_over(mesh)):
        jax.ad_checkpoint.print_saved_residuals(
            jax.checkpoint(layer, policy=REMAT[remat]), q, k, v)
    lines = [line for line in printed.getvalue().splitlines() if 'from the argument' not in line]
    sizes = [np.prod([int(n) for n in line[line.index('[') + 1 : line.index(']')].split(',')])
             for line in lines]
    assert sizes.count(q.size) == (remat != 'full'), lines
    assert max(sizes) == q.size or remat == 'full'


def test_heads_that_do_not_split_stay_whole():
    arrays = inputs(heads=3, kv_heads=1)
    mesh = make_mesh({'tensor': 2}, jax.devices()[:2])
    with jax.set_mesh(mesh), sharded_over(mesh):
        got = value_and_gradients(*arrays)
    assert_close(got, value_and_gradients(*arrays), 1e-5)


def test_rows_that_do_not_fill_splash_blocks_are_done_plainly():
    q, k, v, segments = (x[:, :100] for x in inputs())
    got = causal_attention(q, k, v, segments, backend='splash')
    np.testing.assert_array_equal(got, causal_attention(q, k, v, segments))


@pytest.mark.parametrize(('platform', 'dtype', 'expected'), [
    ('cpu', 'bfloat16', 'plain'), ('tpu', 'bfloat16', 'splash'), ('tpu', 'float32', 'splash'),
    ('cuda', 'bfloat16', 'cudnn'), ('cuda', 'float32', 'plain'),
    ('rocm', 'bfloat16', 'plain'), ('gpu', 'bfloat16', 'plain')])
def test_each_platform_has_its_own(platform, dtype, expected):
    assert choose_backend('auto', platform, jnp.dtype(dtype)) == expected
    assert choose_backend('plain', platform, jnp.dtype(dtype)) == 'plain'


@pytest.mark.parametrize(('backend', 'platform', 'message'), [
    ('flash', 'cpu', "attention must be one of .* got 'flash'"),
    ('splash', 'cuda', "'splash' does not run on cuda"),
    ('cudnn', 'rocm', "'cudnn' does not run on rocm"),
    ('cudnn', 'cpu', "'cudnn' does not run on cpu")])
def test_what_cannot_run_is_refused(backend, platform, message):
    with pytest.raises(ValueError, match=message):
        choose_backend(backend, platform, jnp.dtype('bfloat16'))


def test_cudnn_is_refused_in_full_precision():
    with pytest.raises(ValueError, match="'cudnn' takes float16 and bfloat16, not float32"):
        choose_backend('cudnn', 'cuda', jnp.dtype('float32'))
