"""Rollouts on PageWorld: vrag_jax against a loop over transformers' `generate` in torch."""

import sys

from absl import app, flags

from benchmarks.paired import Worker, emit, facts, in_turn

_WORKDIR = flags.DEFINE_string('workdir', 'runs/tiny', 'A finished run of configs/tiny.py.')
_TORCH_PYTHON = flags.DEFINE_string(
    'torch_python', None, 'Python of an environment with torch, see benchmarks/README.md.',
    required=True)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed runs of each side.', lower_bound=1)
_THREADS = flags.DEFINE_integer('threads', 2, 'Cores of each side.', lower_bound=1)
_OUT = flags.DEFINE_string('out', '', 'File to which JSON lines are appended.')


def main(_: list[str]) -> None:
    ours = Worker(sys.executable, 'benchmarks.rollouts_jax', [_WORKDIR.value], _THREADS.value)
    theirs = Worker(_TORCH_PYTHON.value, 'benchmarks.rollouts_torch', [_WORKDIR.value],
                    _THREADS.value)
    about = facts(threads=_THREADS.value, **ours.facts, **theirs.facts)

    a, b = (worker.ask(temperature=0.0, tokens=True) for worker in (ours, theirs))
    same = sum(x == y for x, y in zip(a['turns'], b['turns'], strict=True))
    emit(_OUT.value, 'rollouts', 'identical greedy trajectories', value=same,
         of=len(a['turns']), right_ours=a['right'], right_theirs=b['right'], **about)
    for figure, request in {
        'greedy': {'temperature': 0.0},
        'temperature 1': {'temperature': 1.0},
        'greedy, theirs processes each image once': {'temperature': 0.0, 'reprocess': False},
        'greedy, ours keeps image features': {'temperature': 0.0, 'keep_features': True},
    }.items():
        pair = in_turn(ours, theirs, _REPEATS.value, **request)
        record = pair.record()
        rates = {f'{side}_trajectories_per_s': round(len(a['turns']) / record[side]['median'], 1)
                 for side in ('ours', 'theirs')}
        emit(_OUT.value, 'rollouts', figure, aim=8.0, **record, **rates, **about)
    ours.close()
    theirs.close()


if __name__ == '__main__':
    app.run(main)
