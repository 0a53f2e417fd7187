"""A tiny random policy, a vocabulary in which it acts often, and ragged prompts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vrag_jax.actions.stopping import build_stop_table
from vrag_jax.models.common.mrope import rope_index
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.sampling.sampler import Chunk, Sampler
from vrag_jax.sampling.slots import SamplerConfig

IMAGE, END, VOCAB = 3, 2, 64
MODEL = preset('tiny', vocab_size=VOCAB, image_token_id=IMAGE)
# Most ids open or close an action, so that a random policy acts often.
BYTES = [b'', b'', b'', b''] + [b'<answer>'] * 6 + [b'</answer>'] * 6 + [b'<sea', b'rch>'] * 4
BYTES += [b'a', b'</search>', b'<think>', b'</think>', b' <', b'>'] * 2
BYTES += [b'z'] * (VOCAB - len(BYTES))
SIZES = dict(slots=4, max_length=64, max_new_tokens=16, decode_tokens=16, block_size=8,
             prefill_shapes=((4, 8), (2, 32)))
GRIDS = ((), ((1, 4, 4),), ((1, 2, 6),), ())  # Images of each prompt.
LENGTHS = (40, 13, 21, 5)


@pytest.fixture(scope='session')
def model():
    return MODEL


@pytest.fixture(scope='session')
def token_texts():
    """What each id stands for."""
    return BYTES


@pytest.fixture(scope='session')
def end_id():
    return END


@pytest.fixture(scope='session')
def sizes():
    """Function: sizes of the sampler, with changes."""
    return lambda **changes: SamplerConfig(**SIZES | changes)


@pytest.fixture(scope='session')
def policy():
    """Graph definition and random parameters."""
    create = lambda: flat_params(Qwen2_5_VL(MODEL, rngs=nnx.Rngs(0)))  # noqa: E731
    graphdef, _ = nnx.eval_shape(create)
    # Random queries and keys of the usual size make attention nearly uniform.
    return graphdef, {path: value * 4 if re.search('[qk]_proj/kernel$', path) else value
                      for path, value in jax.jit(lambda: create()[1])().items()}


@pytest.fixture(scope='session')
def buffer():
    """Image features."""
    return jnp.asarray(np.random.default_rng(3).normal(size=(8, 128)), jnp.float32)


@pytest.fixture(scope='session')
def prompts():
    """Four ragged prompts, two of them with an image."""
    rng, made, used = np.random.default_rng(0), [], 0
    for grids, length in zip(GRIDS, LENGTHS, strict=True):
        tokens = rng.integers(4, VOCAB, length).astype(np.int32)
        for _, h, w in grids:
            tokens[4 : 4 + h * w // 4] = IMAGE
        is_image = tokens == IMAGE
        index = np.where(is_image, used + np.cumsum(is_image) - 1, -1).astype(np.int32)
        used += int(is_image.sum())
        made.append(Chunk(tokens, rope_index(tokens, grids, MODEL)[0], index))
    return made


@pytest.fixture(scope='session')
def make_sampler(policy, sizes):
    """Function: a sampler of other sizes."""
    def make(mesh=None, **changes):
        return Sampler(policy[0], MODEL, sizes(**changes), build_stop_table(BYTES), [END],
                       base_seed=1, mesh=mesh)
    return make


@pytest.fixture(scope='session')
def sampler(make_sampler):
    return make_sampler()


@pytest.fixture(scope='session')
def next_log_probs(policy, buffer):
    """Function: log-probs of the token after a sequence, by the uncached model."""
    graphdef, params = policy

    @jax.jit
    def run(params, tokens, positions, index, last):
        model = merge(graphdef, params)
        hidden = model.hidden_states(tokens, positions, image_features=buffer, image_index=index)
        return jax.nn.log_softmax(model.logits(hidden[0, last]))

    def of(chunk):
        width = ((0, 64 - len(chunk)),)
        return np.asarray(run(
            params, np.pad(chunk.tokens, width)[None],
            np.pad(chunk.position_ids, ((0, 0), *width))[:, None],
            np.pad(chunk.image_index, width, constant_values=-1)[None], len(chunk) - 1))

    return of


@pytest.fixture(scope='session')
def extended():
    """Function: a chunk with text tokens after it."""
    def extend(chunk, tokens):
        n, first = len(tokens), int(chunk.position_ids[0, -1]) + 1
        places = np.tile(np.arange(first, first + n, dtype=np.int32), (3, 1))
        return Chunk(np.append(chunk.tokens, tokens).astype(np.int32),
                     np.concatenate([chunk.position_ids, places], axis=1),
                     np.append(chunk.image_index, np.full(n, -1, np.int32)))
    return extend
