"""Our side of the rollout benchmark; started by `benchmarks.rollouts`."""

import json
import sys
from pathlib import Path

import jax

from benchmarks import paired
from benchmarks.setting import grouped_questions, open_run
from vrag_jax.rollout.driver import episode_seed, run_policy
from vrag_jax.sampling.distribution import SamplingConfig


def main() -> None:
    options = json.loads(sys.argv[1])
    space = open_run(Path(options['workdir']), Path(options['config']))
    world, params = space.world(), space.initial_params()

    def play(prompts: int, group_size: int, temperature: float, seed: int = 0,
             keep_features: bool = False):
        questions = grouped_questions(space, prompts, group_size)
        seeds = [episode_seed('benchmark', seed, i) for i in range(len(questions))]
        if not keep_features:
            # As if the policy's vision tower had changed, and the pages were others.
            space.features.clear()
            space.preprocess.clear()
        seconds, trajectories = paired.timed(lambda: run_policy(
            world, space.sampler, space.features, params, questions,
            SamplingConfig(temperature), seeds))
        return seconds, [t.tokens.tolist() for t in trajectories]

    space.features.warm_up(params)
    for temperature in (0.0, 1.0):
        space.sampler.warm_up(params, space.features.buffer, SamplingConfig(temperature))
        play(options['prompts'], options['group_size'], temperature)
    facts = {**paired.versions('jax', 'jaxlib', 'flax', 'numpy', 'transformers'),
             'platform': jax.default_backend(), 'dtype': space.config.policy.dtype}
    paired.serve({'play': play}, facts)


if __name__ == '__main__':
    main()
