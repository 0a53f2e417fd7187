"""Worker: rollouts by vrag_jax."""

import sys
import time

from benchmarks.paired import pin, serve, threads
from benchmarks.setting import load_policy, open_setting, sampled_runs
from vrag_jax.rollout.driver import run_policy
from vrag_jax.rollout.scoring import score
from vrag_jax.sampling.distribution import SamplingConfig


def main(workdir: str) -> None:
    pin(threads())
    setting = open_setting(workdir)
    space, world = setting.space, setting.space.world()
    params = load_policy(setting)

    def handle(temperature: float, repeat: int = 0, keep_features: bool = False,
               tokens: bool = False, **_):
        sampling = SamplingConfig(temperature=temperature)
        if not keep_features:
            space.features.clear()  # As if the policy were a new version.
        seeds = [seed + repeat for seed in setting.seeds]
        started = time.perf_counter()
        trajectories = run_policy(world, space.sampler, space.features, params,
                                  setting.questions, sampling, seeds)
        reply = {'seconds': time.perf_counter() - started, 'trajectories': len(trajectories)}
        if tokens:
            score(trajectories, space.config.reward, space.judge)
            reply |= {'turns': [sampled_runs(t) for t in trajectories],
                      'right': sum(t.rewards['answer'] for t in trajectories)}
        return reply

    space.features.warm_up(params)
    for temperature in (0.0, 1.0):
        space.sampler.warm_up(params, space.features.buffer, SamplingConfig(temperature))
    serve(handle, ['jax', 'flax'])


if __name__ == '__main__':
    main(*sys.argv[1:])
