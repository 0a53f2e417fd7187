"""Worker: GRPO loss and sampling of the same text-only policy by google-tunix."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as model_lib
from tunix.models.qwen2 import params as params_lib
from tunix.rl import algo_core, common
from tunix.rl.grpo.grpo_learner import GRPOConfig

from benchmarks import paired


class Numbers:
    """A tokenizer whose texts are numbers."""

    def __init__(self, end: int):
        self._end = end

    def encode(self, text: str, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return ' '.join(str(int(i)) for i in ids)

    def bos_id(self) -> int:
        return self._end

    def eos_id(self) -> int:
        return self._end

    def pad_id(self) -> int:
        return 0


class FromTokens(sampler_lib.Sampler):
    """Takes the prompt as it is, without a token at its beginning."""

    def tokenize(self, input_string: str):
        return np.array(self.tokenizer.encode(input_string))


def main(folder: str) -> None:
    size = json.loads((Path(folder) / 'sizes.json').read_text())
    config = model_lib.ModelConfig(
        num_layers=size['layers'], vocab_size=size['vocab'], embed_dim=size['hidden'],
        hidden_dim=size['inner'], num_heads=size['heads'],
        head_dim=size['hidden'] // size['heads'], num_kv_heads=size['kv_heads'],
        rope_theta=size['theta'], norm_eps=1e-6)
    model = params_lib.create_model_from_safe_tensors(
        str(Path(folder) / 'text'), config, dtype=jnp.float32)
    data = np.load(Path(folder) / 'batch.npz')
    prompt = size['prompt']
    example = common.TrainExample(
        prompt_ids=jnp.asarray(data['tokens'][:, :prompt]),
        prompt_mask=jnp.ones((size['batch'], prompt), jnp.int32),
        completion_ids=jnp.asarray(data['tokens'][:, prompt:]),
        completion_mask=jnp.ones((size['batch'], size['length'] - prompt), jnp.int32),
        advantages=jnp.asarray(data['advantages']),
        ref_per_token_logps=jnp.asarray(data['ref'][:, prompt:]),
        old_per_token_logps=jnp.asarray(data['old'][:, prompt:]))
    algorithm = GRPOConfig(num_generations=2, beta=0.04, epsilon=0.2,
                           loss_agg_mode='token-mean', kl_loss_mode='low_var_kl')
    # As its learner sets them.
    algorithm.temperature = 1.0
    algorithm.kl_clamp_value = None

    @nnx.jit
    def step(model, accumulated, example):
        def loss_of(model):
            return algo_core.grpo_loss_fn(
                model, example, algorithm, pad_id=0, eos_id=size['end'])
        (loss, aux), grads = nnx.value_and_grad(loss_of, has_aux=True)(model)
        return loss, aux, jax.tree.map(jnp.add, accumulated, grads)

    accumulated = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    sampler = FromTokens(model, Numbers(size['end']), sampler_lib.CacheConfig(
        cache_size=size['length'], num_layers=size['layers'], num_kv_heads=size['kv_heads'],
        head_dim=size['hidden'] // size['heads']))
    prompts = [' '.join(map(str, row[:prompt])) for row in data['tokens']]

    def loss() -> dict[str, float]:
        nonlocal accumulated
        value, aux, accumulated = step(model, accumulated, example)
        values = {'loss': float(value), 'kl': float(aux['kl']), 'entropy': float(aux['entropy'])}
        jax.block_until_ready(accumulated)
        return values

    def sample() -> list[list[int]]:
        out = sampler(prompts, max_generation_steps=size['length'] - prompt,
                      max_prompt_length=prompt, eos_tokens=[size['end']], return_logprobs=True)
        return [np.asarray(row).tolist() for row in out.tokens]

    for run in (loss, sample):
        run()
    paired.serve({'loss': lambda: paired.timed(loss), 'sample': lambda: paired.timed(sample)},
                 paired.versions('google-tunix', 'jax', 'flax'))


if __name__ == '__main__':
    main(*sys.argv[1:])
