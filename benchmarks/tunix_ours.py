"""Worker: GRPO loss and sampling of a text-only policy by vrag_jax."""

import dataclasses
import json
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from benchmarks import paired
from vrag_jax.actions.stopping import StopTable
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner.batch import BatchLayout, micro_batches
from vrag_jax.learner.learner import Learner, LearnerConfig
from vrag_jax.learner.losses import GrpoLossConfig
from vrag_jax.learner.steps import grpo
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.families import family_of, preset
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.sampler import Sampler
from vrag_jax.sampling.scheduler import Scheduler
from vrag_jax.sampling.slots import SamplerConfig

BATCH, LENGTH, PROMPT, VOCAB = 8, 256, 64, 4096
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS = 4, 256, 1024, 4, 2
END = VOCAB - 1


class Text:
    """A stream of text tokens."""

    def __init__(self, tokens: np.ndarray):
        self.processed: list = []
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def tail(self, start: int):
        tokens = self._tokens[start:]
        places = np.arange(start, len(self), dtype=np.int32)
        return tokens, np.tile(places, (3, 1)), np.full(len(tokens), -1, np.int32)

    def append_text(self, ids, logprobs=None, sampled: bool = False) -> None:
        del logprobs, sampled
        self._tokens = np.append(self._tokens, ids).astype(np.int32)


class NoImages:
    """What stands for the cache of image features where there are no images."""

    buffer = jnp.zeros((1, HIDDEN))
    lock = threading.RLock()

    def rows_of(self, params, images):
        del params, images
        return {}


def model_config():
    """The tiny policy with the decoder of the comparison; its vision tower is not used."""
    sizes = preset('tiny', vocab_size=VOCAB)
    return dataclasses.replace(
        sizes, vision=dataclasses.replace(sizes.vision, out_hidden_size=HIDDEN),
        text=dataclasses.replace(
            sizes.text, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rope_theta=1_000_000.0,
            mrope_section=(8, 12, 12), tie_word_embeddings=False))


def export(folder: Path, graphdef, params, tokens, old, ref, advantages) -> None:
    """Writes the decoder's weights and the batch for the other side."""
    hf_checkpoint.save(merge(graphdef, params), folder / 'hf')
    weights: dict[str, np.ndarray] = {}
    for file in sorted((folder / 'hf').glob('*.safetensors')):
        weights |= load_file(file)
    text = {name: value for name, value in weights.items() if not name.startswith('visual')}
    (folder / 'text').mkdir()
    save_file(text, folder / 'text' / 'model.safetensors')
    np.savez(folder / 'batch.npz', tokens=tokens, old=old, ref=ref, advantages=advantages)
    (folder / 'sizes.json').write_text(json.dumps({
        'batch': BATCH, 'length': LENGTH, 'prompt': PROMPT, 'vocab': VOCAB, 'layers': LAYERS,
        'hidden': HIDDEN, 'inner': INNER, 'heads': HEADS, 'kv_heads': KV_HEADS, 'end': END,
        'theta': 1_000_000}))


def main(folder: str) -> None:
    config = model_config()
    create = lambda: flat_params(family_of(config).model(config, rngs=nnx.Rngs(0)))  # noqa: E731
    graphdef, _ = nnx.eval_shape(create)
    mesh = make_mesh({}, devices=jax.devices()[:1])
    params = jax.jit(lambda: create()[1])()
    params = jax.device_put(params, parameter_shardings(params, mesh))

    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB - 1, (BATCH, LENGTH)).astype(np.int32)
    advantages = rng.normal(size=BATCH).astype(np.float32)
    mask = np.zeros(LENGTH, np.float32)
    mask[PROMPT:] = 1
    plain = [TokenSequence(
        tokens=row, loss_mask=mask, image_index=np.full(LENGTH, -1, np.int32),
        position_ids=np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1)),
        advantages=mask * advantage) for row, advantage in zip(tokens, advantages, strict=True)]
    settings = LearnerConfig(frozen='^visual/', rows=BATCH, length=LENGTH, vocab_chunk=0)
    learner = Learner(graphdef, params, config, settings,
                      grpo(GrpoLossConfig(kl_coef=0.04)), 1, mesh)

    current = np.stack(learner.logprobs(params, plain, NoImages()))
    old, ref = (current + rng.normal(0, 0.1, current.shape).astype(np.float32) * mask
                for _ in range(2))
    export(Path(folder), graphdef, params, tokens, old, ref, advantages)
    sequences = [dataclasses.replace(s, old_logprobs=a, ref_logprobs=b, sampler_logprobs=a)
                 for s, a, b in zip(plain, old, ref, strict=True)]
    layout = BatchLayout(rows=BATCH, length=LENGTH, span=1)
    micro, = micro_batches(sequences, layout, config, lambda _: {})
    batch = jax.device_put(micro.batch)
    total = jnp.float32(BATCH * (LENGTH - PROMPT))
    zeros = jax.tree.map(jnp.zeros_like, learner.state.trainable)

    sizes = SamplerConfig(
        slots=BATCH, max_length=LENGTH, max_new_tokens=LENGTH - PROMPT,
        decode_tokens=LENGTH - PROMPT, prefill_shapes=((BATCH, PROMPT),),
        attend_lengths=(PROMPT,))
    never = StopTable(np.zeros((1, VOCAB), np.uint8), 0, np.zeros(1, bool))
    sampler = Sampler(graphdef, config, sizes, never, [END], mesh=mesh)

    def loss() -> dict[str, float]:
        nonlocal zeros
        zeros, metrics = learner._steps.gradients(
            learner.state, zeros, batch, NoImages.buffer, total, total)
        values = {name: float(metrics[name]) for name in ('loss', 'kl', 'entropy')}
        jax.block_until_ready(zeros)
        return values

    def sample() -> list[list[int]]:
        scheduler = Scheduler(sampler, None, params, SamplingConfig(temperature=0.0))
        streams = [Text(row[:PROMPT]) for row in tokens]
        for stream in streams:
            scheduler.add([stream], [0])
        while not scheduler.idle:
            scheduler.step()
        return [stream.tail(PROMPT)[0].tolist() for stream in streams]

    for run in (loss, sample):
        run()
    paired.serve({'loss': lambda: paired.timed(loss), 'sample': lambda: paired.timed(sample)},
                 paired.versions('jax', 'flax'))


if __name__ == '__main__':
    main(*sys.argv[1:])
