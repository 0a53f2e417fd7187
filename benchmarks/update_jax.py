"""Worker: GRPO updates by vrag_jax."""

import dataclasses
import sys
import time

import numpy as np

from benchmarks.paired import pin, serve, threads
from benchmarks.setting import load_policy, open_setting
from benchmarks.update_data import save
from vrag_jax.learner.steps import grpo
from vrag_jax.rollout.driver import run_policy
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.tasks.train import make_learner

CONSTANT = {'schedule': 'constant', 'warmup_steps': 0}


def main(workdir: str, file: str, prompts: str) -> None:
    pin(threads())
    setting = open_setting(workdir, prompts=int(prompts), learner=CONSTANT)
    space = setting.space
    params = load_policy(setting)
    trajectories = run_policy(space.world(), space.sampler, space.features, params,
                              setting.questions, SamplingConfig(), setting.seeds)
    rng = np.random.default_rng(0)
    sequences = [t.sequence(float(rng.normal())) for t in trajectories]
    save(file, sequences)
    # The reference is another policy than the trained one, or its KL term would be zero.
    reference = {path: value * 1.01 for path, value in params.items()}
    loss = grpo(space.config.grpo.loss)
    learner = make_learner(space, params, space.config.learner, loss, 1)
    learner.warm_up(space.features, params)

    def handle(old: bool = True, keep_features: bool = False, **_):
        if not keep_features:
            space.features.clear()
        started = time.perf_counter()
        ref = learner.logprobs(reference, sequences, space.features)
        if old:
            before = learner.logprobs(learner.state.params, sequences, space.features)
        else:
            before = [t.logprobs for t in trajectories]
        scored = [dataclasses.replace(s, old_logprobs=a, ref_logprobs=b)
                  for s, a, b in zip(sequences, before, ref, strict=True)]
        metrics = learner.update(scored, space.features)
        return {'seconds': time.perf_counter() - started, 'loss': metrics['loss'],
                'kl': metrics['kl'], 'grad_norm': metrics['grad_norm'],
                'padding': metrics['padding'], 'trajectories': len(sequences)}

    serve(handle, ['jax', 'flax', 'optax'])


if __name__ == '__main__':
    main(*sys.argv[1:])
