"""Work: operations of a GRPO step, ours against the reference's algorithm.

    python -m benchmarks.flops --run=runs/tiny

A step of a trained policy is taken, and every program it runs is noted with its shapes:
that is ours, with all its padding. What the reference's algorithm takes for the very
same trajectories is worked out from the same model code, compiled for single rows of
several lengths:

- every turn takes in the whole context anew and encodes all images in it;
- old log-probs, reference log-probs and the update each take whole rows, one trajectory
  a row, and encode all images of each row.

Neither side trains the vision tower, and neither recomputes activations.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import paired
from benchmarks.flop_counts import Curve, Recorder, count, shapes, total
from benchmarks.setting import CONFIG, WORKDIR, open_run
from vrag_jax.data.order import host_rng
from vrag_jax.learner import steps
from vrag_jax.learner.learner import Learner
from vrag_jax.models.common.decoder import init_cache
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.parameters import Params, merge
from vrag_jax.models.common.patch_packing import bucket_size, count_windows, pack_images
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.run.context import RunContext
from vrag_jax.training import grpo
from vrag_jax.training.rollouts import Collector

_PROMPTS = flags.DEFINE_integer(
    'prompts', 0, 'Questions of the step; 0 is as many as the config says.', lower_bound=0)
_GRID = flags.DEFINE_integer(
    'grid', 32, 'Lengths for which programs are compiled are multiples of it.', lower_bound=1)

ROWS = 8  # Rows of the programs that a row's share is taken from.


@dataclasses.dataclass(frozen=True)
class Step:
    """A GRPO step that has been taken.

    Attributes:
      trajectories: all groups, one after the other.
      rollout, update: operations by program, as compiled and run.
    """

    trajectories: list[Trajectory]
    rollout: dict[str, float]
    update: dict[str, float]


def make_learner(space: RunContext, params: Params, **layout: Any) -> Learner:
    """Returns the learner of the config's GRPO phase, with changes of its layout."""
    config = space.config
    return Learner(
        space.graphdef, params, space.model_config,
        dataclasses.replace(config.grpo.learner, **layout),
        steps.grpo(config.grpo.loss, old_is_current=config.grpo.old_is_current),
        max(1, config.grpo.steps * config.grpo.mini_batches), space.mesh,
        config.grpo.sampling.temperature)


def take_step(space: RunContext, params: Params, prompts: int, recorder: Recorder) -> Step:
    """Takes one step of GRPO as `tasks.grpo` does, with an empty image cache."""
    config = space.config
    learner = make_learner(space, params)
    if not learner.vision_is_frozen:
        raise ValueError('work is counted for a frozen vision tower')
    world, questions = space.world(), space.corpus.questions['train']
    phase = grpo.grpo_phase(config.grpo, 'benchmark')
    collector = Collector(space, phase, world, config.reward, questions, config.grpo.group_size,
                          keep_features=True)
    space.features.clear()
    recorder.take()
    rollout = collector.collect(params, 0, questions[:prompts])
    sampled = recorder.take()
    grpo.update(learner, params, rollout, config.grpo, space.features,
                host_rng(config.seed, 'benchmark', 0))
    updated = recorder.take()
    return Step([t for group in rollout.groups for t in group], total(sampled), total(updated))


# ---- Single rows through the same model code


class RowCosts:
    """Operations of one row of a length, without any padding, in our model code.

    Args:
      space: the run.
      params: the policy's.
      lengths: of the grid.
      recorder: under whose `recording` this is made.
    """

    def __init__(self, space: RunContext, params: Params, lengths: Sequence[int],
                 recorder: Recorder):
        self._space = space
        self._params = shapes(params)
        self._images: dict[tuple[int, int, int], float] = {}
        # Polynomials of the length, of degree 2 and 1: against a cache all keys are looked
        # at, and then masked.
        known = (lengths[-1] // 4, lengths[-1] // 2, lengths[-1])
        self._prefill = np.polyfit(known, [self._extend(n, 0) for n in known], 2)
        self._decode = np.polyfit(known, [self._extend(1, n) for n in known], 1)
        scores, updates = {}, {}
        for length in lengths:
            learner = make_learner(
                space, params, rows=ROWS, length=length, row_buckets=(), length_buckets=())
            recorder.take()
            learner.warm_up(space.features, params)
            programs = total(recorder.take())
            scores[length] = programs['logprobs'] / ROWS
            updates[length] = programs['gradients'] / ROWS
        self.score, self.update = Curve(scores), Curve(updates)

    def prefill(self, new: int, past: int = 0) -> float:
        """Takes in `new` tokens after `past` cached ones, and nothing of its logits."""
        square, linear, constant = self._prefill
        return square * new * (new + past) + linear * new + constant

    def decode(self, past: int) -> float:
        """Takes in one token after `past` cached ones, and draws from its logits."""
        slope, constant = self._decode
        return slope * past + constant

    def _extend(self, new: int, past: int) -> float:
        """`new` tokens of each row after `past` cached ones; logits where it is one."""
        graphdef, config = self._space.graphdef, self._space.model_config
        empty = jax.eval_shape(lambda: init_cache(config, ROWS, new))
        old = jax.eval_shape(lambda: init_cache(config, ROWS, past)) if past else None

        def run(params, tokens, positions, recent, old, features, index):
            model = merge(graphdef, params)
            causal = jnp.tril(jnp.ones((new, new), bool))
            seen = None if old is None else jnp.ones((ROWS, 1, past), bool)
            hidden, cache = model.extend(
                tokens, positions, recent, 0, jnp.broadcast_to(causal, (ROWS, new, new)),
                old, seen, image_features=features, image_index=index)
            if new > 1:
                return hidden, cache
            # Drawing is a few operations an id, beside `2 * hidden_size` of the logits.
            return jax.nn.log_softmax(model.logits(hidden[:, -1])), cache

        ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
        return count(run, self._params, ints(ROWS, new), ints(3, ROWS, new), empty, old,
                     shapes(self._space.features.buffer), ints(ROWS, new)) / ROWS

    def image(self, image: ProcessedImage) -> float:
        """Encodes one image; what does not fill its windows is counted, too."""
        if image.grid_thw not in self._images:
            graphdef, config = self._space.graphdef, self._space.model_config
            windows = count_windows([image.grid_thw], config.vision)
            batch = pack_images([(image.patches, image.grid_thw)], config, windows=windows,
                                span=bucket_size(windows))
            self._images[image.grid_thw] = count(
                lambda params, batch: merge(graphdef, params).encode_images(batch),
                self._params, shapes(batch))
        return self._images[image.grid_thw]


def turns_of(trajectory: Trajectory) -> list[tuple[int, int]]:
    """Returns begin and end of each run of sampled tokens."""
    edges = np.flatnonzero(np.diff([0, *trajectory.loss_mask.astype(int), 0]))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def images_before(trajectory: Trajectory, position: int) -> list[ProcessedImage]:
    """Returns the images whose tokens stand before a position."""
    return [image for image, view in zip(trajectory.processed, trajectory.images, strict=True)
            if view.token_start < position]


def reference_work(trajectories: Iterable[Trajectory], costs: RowCosts, pad_to: int = 0
                   ) -> dict[str, float]:
    """Operations of the reference's algorithm on given trajectories.

    Args:
      trajectories: of the step.
      costs: of rows.
      pad_to: length of every row of the old, reference and update passes; 0 pads none.
        Nothing is ever padded while sampling: the reference's engine does not.
    """
    work = dict.fromkeys(('prefill', 'decode', 'images while sampling', 'old log-probs',
                          'reference log-probs', 'update', 'images of three passes'), 0.0)
    for t in trajectories:
        for begin, end in turns_of(t):
            # The context's last token gives the first sampled one; the last sampled one is
            # not run.
            work['prefill'] += costs.prefill(begin - 1) + costs.decode(begin - 1)
            work['decode'] += sum(costs.decode(n) for n in range(begin, end - 1))
            work['images while sampling'] += sum(map(costs.image, images_before(t, begin)))
        row = max(pad_to, len(t.tokens))
        for name in ('old log-probs', 'reference log-probs'):
            work[name] += costs.score(row)
        work['update'] += costs.update(row)
        work['images of three passes'] += 3 * sum(map(costs.image, t.processed))
    return work


def our_work(groups: Iterable[Sequence[Trajectory]], costs: RowCosts, old_passes: int
             ) -> dict[str, float]:
    """Operations of our algorithm on given groups if nothing were padded.

    Args:
      groups: trajectories of each question.
      costs: of rows.
      old_passes: 1 where the learner works the old log-probs out, else 0.
    """
    work = dict.fromkeys(('prefill', 'decode', 'images', 'old log-probs',
                          'reference log-probs', 'update'), 0.0)
    unique: dict[str, ProcessedImage] = {}
    for group in groups:
        for number, t in enumerate(group):
            cached = 0
            for turn, (begin, end) in enumerate(turns_of(t)):
                # Members of a group share the first turn's context.
                if turn or not number:
                    work['prefill'] += costs.prefill(begin - 1 - cached, cached)
                work['decode'] += sum(costs.decode(n) for n in range(begin - 1, end - 1))
                cached = end - 1
            work['old log-probs'] += old_passes * costs.score(len(t.tokens))
            work['reference log-probs'] += costs.score(len(t.tokens))
            work['update'] += costs.update(len(t.tokens))
            unique |= {image.key: image for image in t.processed}
    work['images'] = sum(map(costs.image, unique.values()))
    return work


def summary(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    """Returns both sides' operations in 1e9, by part and in all, and ours as a share."""
    sides = {name: {**{key: round(value / 1e9, 4) for key, value in side.items()},
                    'all': round(sum(side.values()) / 1e9, 4)}
             for name, side in (('ours', ours), ('theirs', theirs))}
    return {**sides, 'share': round(sum(ours.values()) / sum(theirs.values()), 4)}


def main(_: list[str]) -> None:
    recorder = Recorder()
    with recorder.recording():
        space = open_run(Path(WORKDIR.value), Path(CONFIG.value))
        config = space.config
        params = space.initial_params()
        prompts, size = _PROMPTS.value or config.grpo.prompts, config.grpo.group_size
        step = take_step(space, params, prompts, recorder)
        trajectories, longest = step.trajectories, config.sampler.max_length
        first = min(len(t.tokens) for t in trajectories) // _GRID.value * _GRID.value
        lengths = [*range(max(first, 1), longest, _GRID.value), longest]
        costs = RowCosts(space, params, lengths, recorder)
    old_passes = int(config.grpo.old_source == 'learner')
    groups = [trajectories[i : i + size] for i in range(0, len(trajectories), size)]
    as_run = {f'rollout: {k}': v for k, v in step.rollout.items()}
    as_run |= {f'update: {k}': v for k, v in step.update.items()}
    optimizer = {'optimizer': step.update['step_of']}
    tight = our_work(groups, costs, old_passes) | optimizer
    plain = reference_work(trajectories, costs) | optimizer
    padded = reference_work(trajectories, costs, pad_to=longest) | optimizer
    facts = {
        'trajectories': len(trajectories), 'tokens': sum(len(t.tokens) for t in trajectories),
        'sampled_tokens': int(sum(t.loss_mask.sum() for t in trajectories)),
        'turns': sum(len(t.turns) for t in trajectories),
        'images': sum(len(t.images) for t in trajectories),
        'unique_images': len({i.key for t in trajectories for i in t.processed}),
        'old_logprobs': config.grpo.old_source, 'padded_to': longest}
    conditions = paired.Conditions('flops')
    versions = paired.versions('jax', 'jaxlib', 'flax', 'optax')
    for figure, ours, theirs in (
            ('ours as run, theirs without padding', as_run, plain),
            ('neither with padding', tight, plain),
            (f'ours as run, theirs with rows padded to {longest}', as_run, padded)):
        paired.emit(conditions.record(
            figure, '1e9 operations', **summary(ours, theirs), step=facts, versions=versions),
            paired.OUT.value)


if __name__ == '__main__':
    app.run(main)
