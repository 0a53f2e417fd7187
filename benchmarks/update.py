"""One GRPO update: vrag_jax against the same computation in torch and transformers."""

import sys
import tempfile
from pathlib import Path

from absl import app, flags

from benchmarks.paired import Worker, emit, facts, in_turn
from benchmarks.setting import open_setting

_WORKDIR = flags.DEFINE_string('workdir', 'runs/tiny', 'A finished run of configs/tiny.py.')
_TORCH_PYTHON = flags.DEFINE_string(
    'torch_python', None, 'Python of an environment with torch, see benchmarks/README.md.',
    required=True)
_PROMPTS = flags.DEFINE_integer('prompts', 16, 'Groups of five in the update.', lower_bound=1)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed runs of each side.', lower_bound=1)
_THREADS = flags.DEFINE_integer('threads', 2, 'Cores of each side.', lower_bound=1)
_OUT = flags.DEFINE_string('out', '', 'File to which JSON lines are appended.')
STEPS_COMPARED = 3


def main(_: list[str]) -> None:
    suppressed = open_setting(_WORKDIR.value).space.model_config.suppressed_ids
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / 'trajectories.npz')
        ours = Worker(sys.executable, 'benchmarks.update_jax',
                      [_WORKDIR.value, file, str(_PROMPTS.value)], _THREADS.value)
        theirs = Worker(_TORCH_PYTHON.value, 'benchmarks.update_torch',
                        [_WORKDIR.value, file, ','.join(map(str, suppressed))], _THREADS.value)
        about = facts(threads=_THREADS.value, **ours.facts, **theirs.facts)
        for step in range(1, STEPS_COMPARED + 1):
            a, b = ours.ask(), theirs.ask()
            emit(_OUT.value, 'update', f'losses of step {step}', aim=1e-4,
                 value=abs(a['loss'] - b['loss']),
                 **{f'{name}_{side}': reply[name] for name in ('loss', 'kl', 'grad_norm')
                    for side, reply in (('ours', a), ('theirs', b))}, **about)
        for figure, request in {
            'reference + old + update': {},
            'reference + update, old log-probs from the sampler': {'old': False},
            'reference + old + update, ours keeps image features': {'keep_features': True},
        }.items():
            pair = in_turn(ours, theirs, _REPEATS.value, **request)
            emit(_OUT.value, 'update', figure, aim=2.0, **pair.record(),
                 trajectories=a['trajectories'], padding_ours=round(a['padding'], 3), **about)
        ours.close()
        theirs.close()


if __name__ == '__main__':
    app.run(main)
