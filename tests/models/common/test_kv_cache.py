"""Cached extension and packed segments against whole sequences run one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vrag_jax.models.common import attention
from vrag_jax.models.common.cached_attention import cached_attention
from vrag_jax.models.common.decoder import init_cache, join_caches, split_cache
from vrag_jax.models.common.mrope import rope_index
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.patch_packing import pack_images
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

IMAGE = 3
CONFIG = preset('tiny', vocab_size=50, image_token_id=IMAGE)
# Rows with no, one and two images.
ROW_GRIDS = ((), ((1, 4, 6),), ((1, 2, 4), (1, 6, 4)))
SLOTS = 32


GRAPHDEF, SHAPES = flat_params(nnx.eval_shape(lambda: Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))))


@pytest.fixture(scope='module')
def params():
    """Random parameters, large enough for attention to be far from uniform."""
    generator = np.random.default_rng(0)
    return {path: (0.1 * generator.standard_normal(leaf.shape)).astype(np.float32)
            for path, leaf in SHAPES.items()}


@jax.jit
def encode(params, patches):
    return merge(GRAPHDEF, params).encode_images(patches)


@jax.jit
def whole(params, tokens, positions, segments, features, index):
    model = merge(GRAPHDEF, params)
    return model.logits(model.hidden_states(
        tokens, positions, segment_ids=segments, image_features=features, image_index=index))


@functools.partial(jax.jit, static_argnames='by_layer')
def append(params, tokens, positions, recent, place, recent_seen, past, past_seen, features,
           index, by_layer):
    """One call of `extend`: logits, and the cache of all layers."""
    model = merge(GRAPHDEF, params)
    if by_layer:
        recent, past = split_cache(recent), None if past is None else split_cache(past)
    hidden, recent = model.extend(
        tokens, positions, recent, place, recent_seen, past, past_seen, features, index)
    return model.logits(hidden), join_caches(recent)


@pytest.fixture(scope='module')
def features(params):
    generator = np.random.default_rng(1)
    images = [(generator.standard_normal((h * w, CONFIG.vision.patch_dim)), (t, h, w))
              for grids in ROW_GRIDS for t, h, w in grids]
    return encode(params, pack_images(images, CONFIG))


@pytest.fixture(scope='module')
def rows():
    """Of each row: tokens `[n]`, positions `[3, n]` and rows of the image features `[n]`."""
    generator = np.random.default_rng(0)
    rows, used = [], 0
    for grids in ROW_GRIDS:
        tokens = list(generator.integers(4, 50, 7))
        for _, h, w in grids:
            tokens += [IMAGE] * (h * w // 4) + list(generator.integers(4, 50, 3))
        tokens = np.asarray(tokens, np.int32)
        is_image = tokens == IMAGE
        index = np.where(is_image, used + np.cumsum(is_image) - 1, -1).astype(np.int32)
        used += int(is_image.sum())
        rows.append((tokens, rope_index(tokens, grids, CONFIG)[0], index))
    return rows


def pad(array, width, value=0):
    """Pads the last axis on the right."""
    widths = [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])]
    return np.pad(array, widths, constant_values=value)


def stack(pieces, width):
    """Tokens, positions and image rows of ragged pieces, padded to one width."""
    return (np.stack([pad(tokens, width) for tokens, _, _ in pieces]),
            np.stack([pad(positions, width) for _, positions, _ in pieces], axis=1),
            np.stack([pad(index, width, -1) for _, _, index in pieces]))


@pytest.fixture(scope='module')
def expected(params, rows, features):
    """Logits of each row, run alone."""
    logits = []
    for tokens, positions, index in rows:
        ids, at, image = stack([(tokens, positions, index)], SLOTS)
        segments = pad(np.ones((1, len(tokens)), np.int32), SLOTS)
        logits.append(np.asarray(
            whole(params, ids, at, segments, features, image))[0, : len(tokens)])
    return logits


@pytest.mark.parametrize(('turns', 'kept_turns'), [
    # New tokens of each row, turn by turn: prefill, ragged turns, single tokens.
    (((7, 16, 21),), 0),
    (((3, 9, 4), (0, 4, 8), (4, 3, 0), (0, 0, 9)), 1),
    (((6, 15, 12), (1, 0, 1), (0, 1, 1), (0, 0, 7)), 1),
    (((6, 15, 12), (1, 1, 9)), 0),
])
@pytest.mark.parametrize('by_layer', [False, True], ids=['scanned', 'unrolled'])
def test_ragged_turns_through_the_cache_equal_the_whole_sequence(
        params, rows, features, expected, turns, kept_turns, by_layer):
    """What a chunk sees: kept turns in `past` and, of this loop, those in `recent`."""
    got = [[] for _ in rows]
    assert [len(tokens) for tokens, _, _ in rows] == list(np.sum(turns, axis=0))
    lengths = np.zeros(len(rows), np.int32)
    recent, width = init_cache(CONFIG, len(rows), 96), 24
    past, past_seen = None, None
    seen = np.zeros((len(rows), 96), bool)
    for turn, counts in enumerate(np.asarray(turns, np.int32)):
        pieces = [tuple(x[..., n : n + c] for x in row)
                  for row, n, c in zip(rows, lengths, counts, strict=True)]
        tokens, positions, index = stack(pieces, width)
        # Chunks lie one after the other; padding in between is never seen.
        place = (turn - kept_turns) * width if turn >= kept_turns else 0
        own = np.tril(np.ones((width, width), bool))
        recent_seen = np.repeat(seen[:, None], width, axis=1)
        recent_seen[:, :, place : place + width] = own
        logits, recent = append(params, tokens, positions, recent, place, recent_seen, past,
                                past_seen, features, index, by_layer)
        for row, count in enumerate(counts):
            got[row].append(np.asarray(logits[row, :count]))
            seen[row, place : place + count] = True
        lengths += counts
        if turn + 1 == kept_turns:
            past, past_seen = recent, seen[:, None].copy()
            recent, seen = init_cache(CONFIG, len(rows), 96), np.zeros_like(seen)
    for row, want in enumerate(expected):
        np.testing.assert_allclose(np.concatenate(got[row]), want, atol=1e-4)


def test_sequences_packed_into_one_row_equal_separate_rows(params, rows, features, expected):
    width = 48
    packed = [np.concatenate(parts, axis=-1) for parts in zip(*rows, strict=True)]
    segments = np.concatenate([np.full(len(row[0]), n, np.int32) for n, row in enumerate(rows, 1)])
    tokens, positions, index = stack([packed], width)
    logits = np.asarray(whole(params, tokens, positions, pad(segments[None], width),
                              features, index))[0]
    np.testing.assert_allclose(logits[: len(segments)], np.concatenate(expected), atol=1e-4)


def test_padding_content_does_not_matter(params, rows, features, expected):
    tokens, positions, index = stack(rows, 24)
    segments = np.stack([pad(np.ones(len(row[0]), np.int32), 24) for row in rows])
    tokens = np.where(segments > 0, tokens, 17)
    positions = np.where(segments > 0, positions, 99)
    logits = np.asarray(whole(params, tokens, positions, segments, features, index))
    assert np.isfinite(logits).all()
    for row, want in enumerate(expected):
        np.testing.assert_allclose(logits[row, : len(want)], want, atol=1e-4)


def gradients(params, rows, features, **options):
    """Gradient of a function of the final hidden states."""
    tokens, positions, index = stack(rows, 24)
    segments = np.stack([pad(np.ones(len(row[0]), np.int32), 24) for row in rows])
    graphdef, _ = nnx.split(nnx.eval_shape(
        lambda: Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0), **options)))

    def loss(params):
        hidden = merge(graphdef, params).hidden_states(
            tokens, positions, segment_ids=segments, image_features=features, image_index=index)
        return jnp.sum(jnp.sin(hidden) * segments[..., None])

    return jax.jit(jax.grad(loss))(params)


def assert_close(got, want):
    for path in want:
        scale = np.abs(want[path]).max()
        np.testing.assert_allclose(got[path], want[path], atol=1e-4 * scale, err_msg=path)


@pytest.fixture(scope='module')
def plain_gradients(params, rows, features):
    return gradients(params, rows, features)


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_remat_changes_no_gradient(params, rows, features, plain_gradients, remat):
    assert_close(gradients(params, rows, features, remat=remat), plain_gradients)


@pytest.mark.parametrize(('block', 'recomputed'), [
    (8, 0), (10, 1024), pytest.param(10, 0, marks=pytest.mark.slow),
    pytest.param(8, 1024, marks=pytest.mark.slow)])
def test_blocks_of_queries_change_no_gradient(
        params, rows, features, plain_gradients, block, recomputed, monkeypatch):
    """Whether or not the block divides the 24 tokens."""
    monkeypatch.setattr(attention, 'SMALLEST_BLOCK', block)
    monkeypatch.setattr(attention, 'BLOCKS', 24)
    monkeypatch.setattr(attention, 'RECOMPUTED_LENGTH', recomputed)
    assert attention.block_size(24) == block
    assert_close(gradients(params, rows, features), plain_gradients)


@pytest.mark.parametrize(('length', 'size'), [
    (1, 128), (128, 128), (384, 128), (1024, 128), (1025, 256), (10240, 1280)])
def test_sizes_of_blocks(length, size):
    assert attention.block_size(length) == size


def test_blocks_skip_what_cannot_be_seen():
    """Eight blocks work out 36 of 64 squares of scores, and their share of the output."""
    def flops(length):
        q = jnp.zeros((1, length, 2, 16))
        compiled = jax.jit(attention.causal_attention).lower(
            q, q, q, jnp.ones((1, length), jnp.int32)).compile()
        return compiled.cost_analysis()['flops']

    products = 4 * 2 * 16 * 1024**2  # Both products of a whole square.
    whole = flops(128) / 128**2 * 1024**2  # One block, scaled up.
    assert whole > products
    assert flops(1024) < 0.6 * whole


def test_one_query_at_a_time_is_all_at_once():
    """The form that a CPU takes for one query a row, against the general one."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    parts = [(draw(3, 2, 16, n), draw(3, 2, n, 16), jnp.asarray(rng.random((3, 1, n)) < 0.7))
             for n in (5, 9)]
    q = draw(3, 1, 4, 16)
    alone = cached_attention(q, parts)
    together = cached_attention(jnp.concatenate([q, q], axis=1), parts)
    np.testing.assert_allclose(alone[:, 0], together[:, 1], atol=1e-5)
    # By hand, for the first row and head.
    keys = np.concatenate([np.asarray(k[0, 0]) for k, _, _ in parts], axis=1)
    values = np.concatenate([np.asarray(v[0, 0]) for _, v, _ in parts])
    seen = np.concatenate([np.asarray(s[0, 0]) for _, _, s in parts])
    weights = np.where(seen, np.exp(np.asarray(q[0, 0, 0]) @ keys / 4), 0)
    np.testing.assert_allclose(alone[0, 0, 0], weights @ values / weights.sum(), atol=1e-5)
