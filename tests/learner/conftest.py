"""A tiny policy and random sequences with images for it to learn from."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from vrag_jax.data.sequences import TokenSequence
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.mrope import rope_index
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

IMAGE = 3
CONFIG = preset('tiny', vocab_size=64, image_token_id=IMAGE)
# One attention window each, but for the last, which takes two.
GRIDS = ((1, 4, 4), (1, 2, 6), (1, 8, 12))


@pytest.fixture(scope='session')
def model_config():
    return CONFIG


@pytest.fixture(scope='session')
def policy():
    """Graph definition and random parameters of the tiny policy."""
    create = lambda: flat_params(Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0)))  # noqa: E731
    graphdef, _ = nnx.eval_shape(create)
    params = jax.jit(lambda: create()[1])()
    # Random queries and keys of the usual size make attention nearly uniform.
    return graphdef, {k: v * 4 if 'q_proj/kernel' in k or 'k_proj/kernel' in k else v
                      for k, v in params.items()}


@pytest.fixture(scope='session')
def images():
    """One image of each grid."""
    rng = np.random.default_rng(7)
    return [ProcessedImage(
        f'image{i}', rng.integers(0, 256, (h * w, CONFIG.vision.patch_bytes), np.uint8),
        (t, h, w), h * w // 4) for i, (t, h, w) in enumerate(GRIDS)]


@pytest.fixture(scope='session')
def make_sequence(images):
    """Returns a function that draws a sequence with given images, as GRPO trains on."""

    def make(seed: int, shown: tuple[int, ...] = (), text: int = 9) -> TokenSequence:
        rng = np.random.default_rng(seed)
        chosen = tuple(images[i] for i in shown)
        pieces, mask = [rng.integers(4, 64, text)], [np.ones(text)]
        for image in chosen:
            pieces += [np.full(image.tokens, IMAGE), rng.integers(4, 64, 6)]
            mask += [np.zeros(image.tokens), np.ones(6)]
        tokens = np.concatenate(pieces).astype(np.int32)
        mask = np.concatenate(mask).astype(np.float32)
        mask[:4] = 0  # the prompt
        is_image = tokens == IMAGE
        old, ref = rng.uniform(-5, -3.5, (2, len(tokens))).astype(np.float32) * mask
        return TokenSequence(
            tokens=tokens, loss_mask=mask,
            position_ids=rope_index(tokens, [i.grid_thw for i in chosen], CONFIG)[0],
            image_index=np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32),
            images=chosen, advantages=mask * np.float32(rng.normal()),
            old_logprobs=old, ref_logprobs=ref)

    return make


@pytest.fixture(scope='session')
def sequences(make_sequence):
    """Sequences with no, one and several images, some shared between them."""
    shown = [(), (0,), (1,), (0, 1), (2,), (), (2,), (1, 1), (0, 2), (1,), ()]
    made = [make_sequence(seed, which, 5 + seed) for seed, which in enumerate(shown)]
    return [dataclasses.replace(s, advantages=s.advantages * 2) for s in made]
