"""Scaling: seconds against work, over group size, turns, images and length.

    python -m benchmarks.scaling --run=runs/tiny --plot=benchmarks/scaling.svg

Work is counted in multiplications: of decoder weights with tokens that were taken in or
drawn, of these with the keys and values before them, and of vision weights with patches that
were encoded. A point's cost is the median time of `--repeats` runs, taken in turn with the
other points of its axis. Cost grows no faster than the work where the exponent of a fit of log
cost on log work is at most 1. Where points differ in their trajectories, the exponent of cost
over these is told as well: a group shares its prompt and its images, so its work grows more
slowly than its trajectories.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import paired
from benchmarks.setting import CONFIG, WORKDIR, grouped_questions, open_run
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.evaluation.charts import Series, line_chart
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.parameters import Params
from vrag_jax.rollout.driver import episode_seed, run_policy
from vrag_jax.run.context import RunContext
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.training.grpo import grpo_phase
from vrag_jax.training.loop import make_learner

_PLOT = flags.DEFINE_string('plot', '', 'SVG file for the plot.')

LENGTHS = (96, 192, 384, 768)  # Tokens of a trajectory.
SLACK = 1.05  # An exponent up to this is called 1.
STYLE = (
    'svg{font:11px sans-serif;background:#fff}.grid{stroke:#ddd}.tick{fill:#555}'
    'polyline{fill:none;stroke-width:2}.raw{opacity:.35}.smooth{display:none}'
    '.raw{opacity:1}.end{display:none}')
Run = Callable[[int], tuple[float, float, int]]
"""Takes the number of the repeat; returns seconds, work and trajectories."""
COLOURS = ('#888', '#2a6fdb', '#d9480f', '#2b8a3e', '#9c36b5', '#0b7285', '#c2255c')


@dataclasses.dataclass(frozen=True)
class Point:
    """A setting of an axis: `work` in multiplications, `seconds` of each run."""

    setting: int
    work: float
    trajectories: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def exponent(points: Sequence[Point], of: Callable[[Point], float] = lambda point: point.work
             ) -> float:
    """Returns the slope of log median seconds over the log of something, by default the work."""
    return float(np.polyfit(np.log([of(point) for point in points]),
                            np.log([point.median for point in points]), 1)[0])


class Costs:
    """Multiplications of a policy's parts.

    Args:
      params: by path.
      config: of the policy.

    Attributes:
      token: of a token with the decoder's weights.
      pair: of a token with a key and a value.
      image_token: of an image token's patches with the vision tower's weights.
    """

    def __init__(self, params: Params, config: ModelConfig):
        merge_area = config.vision.spatial_merge_size ** 2
        self.pair = 2 * config.text.hidden_size * config.text.num_hidden_layers
        size = lambda prefix: sum(  # noqa: E731
            math.prod(value.shape) for path, value in params.items()
            if path.startswith(prefix) and path.endswith(('kernel', 'embedding')))
        self.token = size('language_model/') + size('lm_head/')
        self.image_token = (size('visual/patch_embed') + size('visual/blocks')) * merge_area + size(
            'visual/merger')

    def text(self, lengths: Iterable[int], tokens: int) -> float:
        """Multiplications of the decoder for sequences, of which `tokens` are taken in."""
        return self.token * tokens + self.pair * sum(n * (n + 1) / 2 for n in lengths)


def rollouts(space: RunContext, params: Params, costs: Costs
             ) -> Mapping[str, Mapping[int, Run]]:
    """Runs by axis and setting."""
    def play(prompts: int, group: int, turns: int = 0, opening: tuple[str, ...] = ()):
        world = space.world()
        if turns:
            world = dataclasses.replace(
                world, environment=world.environment.with_config(max_turns=turns))
        questions = grouped_questions(space, prompts, group)

        def run(repeat: int) -> tuple[float, float, int]:
            sampler, features = space.sampler, space.features
            features.clear()
            before = sampler.tokens_prefilled + sampler.tokens_decoded
            seeds = [episode_seed('scaling', repeat, i) for i in range(len(questions))]
            started = time.perf_counter()
            trajectories = run_policy(world, sampler, features, params, questions,
                                      SamplingConfig(), seeds, opening)
            seconds = time.perf_counter() - started
            tokens = sampler.tokens_prefilled + sampler.tokens_decoded - before
            unique = {i.key: i.tokens for t in trajectories for i in t.processed}
            work = costs.text([len(t.tokens) for t in trajectories], tokens)
            return seconds, work + costs.image_token * sum(unique.values()), len(trajectories)

        return run

    search = '<search>{question}</search>'
    return {
        'group size': {n: play(32, n) for n in (2, 4, 8, 16)},
        'turns': {n: play(32, 5, turns=n) for n in (1, 2, 3, 4, 5)},
        'images': {n: play(64, 1, turns=n + 1, opening=(search,) * n) for n in (1, 2, 3, 4)},
    }


def updates(space: RunContext, params: Params, costs: Costs
            ) -> Mapping[str, Mapping[int, Run]]:
    """As `rollouts`, of updates on random tokens."""
    config = space.config
    longest = max(LENGTHS)
    settings = dataclasses.replace(
        config.grpo.learner, length=longest, length_buckets=(), row_buckets=(2, 1),
        rows=max(3, config.grpo.learner.rows * config.grpo.learner.length // longest))
    phase = grpo_phase(dataclasses.replace(config.grpo, learner=settings, mini_batches=1))
    learner = make_learner(space, phase, params, total=1)
    vocabulary = space.model_config.text.vocab_size

    def train(count: int, length: int):
        rng = np.random.default_rng(0)
        made = []
        for _ in range(count):
            mask = np.ones(length, np.float32)
            values = rng.normal(-1, 0.1, (4, length)).astype(np.float32)
            made.append(TokenSequence(
                tokens=rng.integers(0, vocabulary, length).astype(np.int32), loss_mask=mask,
                position_ids=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
                image_index=np.full(length, -1, np.int32), advantages=values[0],
                old_logprobs=values[1], ref_logprobs=values[2], sampler_logprobs=values[3]))

        def run(repeat: int) -> tuple[float, float, int]:
            del repeat
            started = time.perf_counter()
            learner.update(made, space.features)
            seconds = time.perf_counter() - started
            # Forwards once, backwards twice.
            return seconds, 3.0 * costs.text([length] * count, count * length), count

        return run

    learner.warm_up(space.features)
    return {
        'update, trajectories': {n: train(n, 128) for n in (18, 36, 72, 144)},
        'update, length': {n: train(24, n) for n in LENGTHS},
    }


def measure(axis: Mapping[int, Run], repeats: int) -> list[Point]:
    """Runs all settings of an axis in turn; the first round warms up."""
    taken: dict[int, list[tuple[float, float, int]]] = {setting: [] for setting in axis}
    for repeat in range(repeats + 1):
        for setting, run in axis.items():
            result = run(repeat)
            if repeat:
                taken[setting].append(result)
    return [Point(setting, statistics.median(w for _, w, _ in runs), runs[0][2],
                  [s for s, _, _ in runs]) for setting, runs in taken.items()]


def plot(axes: Mapping[str, Sequence[Point]]) -> str:
    """Draws cost against work, both as multiples of each axis' first point."""
    series = []
    widest = max(points[-1].work / points[0].work for points in axes.values())
    series.append(Series('cost = work', np.array([1.0, widest]), np.array([1.0, widest])))
    for name, points in axes.items():
        cost = np.array([p.median for p in points])
        work = np.array([p.work for p in points])
        series.append(Series(name, work / work[0], cost / cost[0]))
    svg = line_chart('seconds against work, relative', series)
    colours = ''.join(f'.series-{i}{{stroke:{c}}}' for i, c in enumerate(COLOURS))
    axes_title = 'seconds over work, each as a multiple of its first point'
    legend = f'<text x="388" y="186" text-anchor="end">{axes_title}</text>' + ''.join(
        f'<text x="56" y="{24 + 14 * i}" fill="{COLOURS[i]}">{one.label}</text>'
        for i, one in enumerate(series))
    opened = svg.index('>') + 1
    head = svg[:opened].replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ')
    return (f'{head}<style>{STYLE}{colours}</style>'
            '<rect width="400" height="220" fill="#fff"/>'
            f'{svg[opened:].removesuffix("</svg>")}{legend}</svg>')


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    space = open_run(Path(WORKDIR.value), Path(CONFIG.value))
    params = space.initial_params()
    costs = Costs(params, space.model_config)
    conditions = paired.Conditions('scaling', (), paired.THREADS.value, cores)
    space.features.warm_up(params)
    space.sampler.warm_up(params, space.features.buffer, SamplingConfig())
    axes: dict[str, list[Point]] = {}
    for name, axis in {**rollouts(space, params, costs), **updates(space, params, costs)}.items():
        axes[name] = points = measure(axis, paired.REPEATS.value)
        slope = exponent(points)
        values: dict[str, Any] = {
            'exponent': round(slope, 3), 'no_faster_than_work': slope <= SLACK,
            'points': [{'setting': p.setting, 'work': p.work, 'trajectories': p.trajectories,
                        'trajectories_per_s': round(p.trajectories / p.median, 1),
                        **paired.spread(p.seconds)} for p in points]}
        if len({p.trajectories for p in points}) > 1:
            by_trajectories = exponent(points, lambda point: point.trajectories)
            values['exponent_by_trajectories'] = round(by_trajectories, 3)
        paired.emit(conditions.record(name, 'exponent', **values), paired.OUT.value)
    if _PLOT.value:
        Path(_PLOT.value).write_text(plot(axes), encoding='utf-8')


if __name__ == '__main__':
    app.run(main)
