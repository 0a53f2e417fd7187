"""One GRPO update: ours against the same computation in torch and transformers.

    python -m benchmarks.update --torch_python=PATH --run=runs/tiny

Reference log-probs, old log-probs, loss, backward pass, AdamW, on groups that our
sampler has drawn. Every run starts from the same weights, some updates away from the
reference, and each side has got there by itself: losses agree only if the updates do.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import paired
from benchmarks.setting import CONFIG, WORKDIR

_TORCH_PYTHON = flags.DEFINE_string(
    'torch_python', None, 'Python with torch, transformers and what vrag_jax needs.',
    required=True)
_PROMPTS = flags.DEFINE_integer('prompts', 16, 'Questions of the update.', lower_bound=1)
_GROUP_SIZE = flags.DEFINE_integer(
    'group_size', 5, 'Trajectories of each question.', lower_bound=2)
_LEAD = flags.DEFINE_integer(
    'lead', 3, 'Updates before the one that is measured.', lower_bound=0)
_MICRO_BATCHES = flags.DEFINE_multi_integer(
    'micro_batch', [8, 16, 40], "Rows of a micro-batch that are tried for torch's side.",
    lower_bound=1)

CHECKED = ('loss', 'policy_loss', 'kl', 'ratio', 'entropy', 'grad_norm')


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    environment = paired.thread_environment(paired.THREADS.value)
    with tempfile.TemporaryDirectory() as folder:
        options = json.dumps({
            'workdir': str(Path(WORKDIR.value).resolve()),
            'config': str(Path(CONFIG.value).resolve()),
            'groups': str(Path(folder) / 'groups.npz'), 'prompts': _PROMPTS.value,
            'group_size': _GROUP_SIZE.value, 'lead': _LEAD.value,
            'threads': paired.THREADS.value, 'micro_batches': _MICRO_BATCHES.value})
        with (paired.Worker('ours', [sys.executable, '-m', 'benchmarks.update_jax', options],
                            environment) as ours,
              paired.Worker('theirs', [_TORCH_PYTHON.value, '-m', 'benchmarks.update_torch',
                                       options], environment) as theirs):
            measure(ours, theirs, cores)


def measure(ours: paired.Worker, theirs: paired.Worker, cores: list[int]) -> None:
    """Compares losses, then times the pairs."""
    conditions = paired.Conditions('update', (ours, theirs), paired.THREADS.value, cores)

    def emit(figure: str, unit: str, **values: Any) -> None:
        paired.emit(conditions.record(figure, unit, **values), paired.OUT.value)

    for old, told in (('learner', 'old log-probs worked out'),
                      ('sampler', 'old log-probs of the policy that sampled')):
        values = [worker.run('update', old=old).check for worker in (ours, theirs)]
        emit(f'loss, {told}', 'nats', **paired.agreement(values[0], values[1], CHECKED))
    figures: dict[str, dict[str, Any]] = {
        'update': {},
        'update, ours has image features from the rollout': {'keep_features': True},
        "update, ours has image features from the rollout and the sampler's old log-probs":
            {'keep_features': True, 'old': 'sampler'},
    }
    replies = paired.in_turn(
        {'ours': paired.Lane(ours, 'parts'), 'theirs': paired.Lane(theirs, 'parts')},
        paired.REPEATS.value)
    emit('where the time goes', 's', **{
        name: {part: statistics.median(reply.check[part] for reply in lane)
               for part in lane[0].check} for name, lane in replies.items()})
    trajectories = ours.facts['groups']['trajectories']
    for figure, fields in figures.items():
        replies = paired.in_turn(
            {'ours': paired.Lane(ours, 'update', fields), 'theirs': paired.Lane(theirs, 'update')},
            paired.REPEATS.value)
        seconds = {name: [reply.seconds for reply in lane] for name, lane in replies.items()}
        emit(figure, 'trajectories/s', padding=replies['ours'][0].check['padding'],
             **paired.compare(amount=trajectories, **seconds))


if __name__ == '__main__':
    app.run(main)
