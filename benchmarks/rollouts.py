"""Rollouts: trajectories a second, ours against a loop over `generate` in torch.

    python -m benchmarks.rollouts --torch_python=PATH --run=runs/tiny

Every figure but the first is a pair of times, taken in turn, of the same episodes:
`prompts` training questions of PageWorld, `group_size` episodes of each.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import paired
from benchmarks.setting import CONFIG, WORKDIR, differences

_TORCH_PYTHON = flags.DEFINE_string(
    'torch_python', None, 'Python with torch, transformers and what vrag_jax needs.',
    required=True)
_PROMPTS = flags.DEFINE_integer('prompts', 32, 'Questions of a run.', lower_bound=1)
_GROUP_SIZE = flags.DEFINE_integer('group_size', 5, 'Episodes of each question.', lower_bound=1)
_DISTINCT = flags.DEFINE_integer(
    'distinct', 160, 'Questions whose greedy trajectories are compared, besides the timed ones.',
    lower_bound=1)


ALONE = 8  # Questions where episodes are played one at a time, which takes long.


def compare_trajectories(ours: paired.Worker, theirs: paired.Worker, prompts: int,
                         group_size: int) -> dict[str, Any]:
    """Plays the same questions greedily on both sides and compares token by token.

    Returns:
      'identical' of 'trajectories', and of each other one the first token that differs
      with the margin between the two tokens' logits, in float64: where it is as small as
      float32 rounds, either may come first.
    """
    request = {'prompts': prompts, 'group_size': group_size, 'temperature': 0.0}
    tokens = [worker.run('play', **request).check for worker in (ours, theirs)]
    found = differences(*tokens)
    inside = [d for d in found if min(d.ours, d.theirs) >= 0]
    logits = theirs.run('margins', places=[
        [d.episode, d.position, d.ours, d.theirs] for d in inside]).check
    margins = {d.episode: abs(a - b) for d, (a, b) in zip(inside, logits, strict=True)}
    return {
        'identical': len(tokens[0]) - len(found), 'trajectories': len(tokens[0]),
        'tokens': sum(map(len, tokens[0])),
        'differences': [{'episode': d.episode, 'position': d.position, 'ours': d.ours,
                         'theirs': d.theirs, 'logit_margin': margins.get(d.episode)}
                        for d in found]}


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    prompts, group_size = _PROMPTS.value, _GROUP_SIZE.value
    options = json.dumps({
        'workdir': str(Path(WORKDIR.value).resolve()),
        'config': str(Path(CONFIG.value).resolve()),
        'prompts': prompts, 'group_size': group_size, 'threads': paired.THREADS.value})
    environment = paired.thread_environment(paired.THREADS.value)
    with (paired.Worker('ours', [sys.executable, '-m', 'benchmarks.rollouts_jax', options],
                        environment) as ours,
          paired.Worker('theirs', [_TORCH_PYTHON.value, '-m', 'benchmarks.rollouts_torch',
                                   options], environment) as theirs):
        conditions = paired.Conditions(
            'rollouts', (ours, theirs), paired.THREADS.value, cores)

        def emit(figure: str, unit: str, **values: Any) -> None:
            paired.emit(conditions.record(figure, unit, **values), paired.OUT.value)

        emit('greedy trajectories, each of another question', 'trajectories',
             **compare_trajectories(ours, theirs, _DISTINCT.value, 1))
        emit('greedy trajectories, as timed', 'trajectories',
             **compare_trajectories(ours, theirs, prompts, group_size))
        timed = {'prompts': prompts, 'group_size': group_size}
        figures: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
            'greedy': ({'temperature': 0.0}, {}, {}),
            'temperature 1': ({'temperature': 1.0}, {}, {}),
            'greedy, ours keeps image features': (
                {'temperature': 0.0}, {'keep_features': True}, {}),
            'greedy, theirs processes each image once': (
                {'temperature': 0.0}, {}, {'reprocess': False}),
            'greedy, theirs one episode at a time': (
                {'temperature': 0.0, 'prompts': min(prompts, ALONE)}, {}, {'together': False}),
        }
        for figure, (both, only_ours, only_theirs) in figures.items():
            lanes = {
                'ours': paired.Lane(ours, 'play', {**timed, **both, **only_ours}),
                'theirs': paired.Lane(theirs, 'play', {**timed, **both, **only_theirs})}
            replies = paired.in_turn(lanes, paired.REPEATS.value)
            seconds = {name: [reply.seconds for reply in lane] for name, lane in replies.items()}
            tokens = {name: [sum(map(len, reply.check)) for reply in lane]
                      for name, lane in replies.items()}
            amount = both.get('prompts', prompts) * group_size
            emit(figure, 'trajectories/s', trajectories=amount, tokens=tokens,
                 **paired.compare(amount=amount, **seconds))


if __name__ == '__main__':
    app.run(main)
