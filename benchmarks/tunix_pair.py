"""GRPO loss and sampler of a text-only policy: vrag_jax against google-tunix.

    python -m benchmarks.tunix_pair --tunix_python=PATH
"""

import sys
import tempfile

from absl import app, flags

from benchmarks import paired

_TUNIX_PYTHON = flags.DEFINE_string(
    'tunix_python', None, 'Python of an environment with google-tunix.', required=True)


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    environment = paired.thread_environment(paired.THREADS.value)
    with tempfile.TemporaryDirectory() as folder, paired.Worker(
            'ours', [sys.executable, '-m', 'benchmarks.tunix_ours', folder],
            environment) as ours, paired.Worker(
            'theirs', [_TUNIX_PYTHON.value, '-m', 'benchmarks.tunix_theirs', folder],
            environment) as theirs:
        conditions = paired.Conditions('tunix', (ours, theirs), paired.THREADS.value, cores)

        def emit(figure: str, unit: str, **values) -> None:
            paired.emit(conditions.record(figure, unit, **values), paired.OUT.value)

        a, b = (worker.run('loss').check for worker in (ours, theirs))
        emit('losses', 'difference', value=abs(a['loss'] - b['loss']), ours=a, theirs=b,
             equal=abs(a['loss'] - b['loss']) <= 1e-4)
        a, b = (worker.run('sample').check for worker in (ours, theirs))
        same = sum(x == y for row, other in zip(a, b, strict=True)
                   for x, y in zip(row, other, strict=False))
        emit('greedy tokens', 'tokens', identical=same, tokens=sum(map(len, a)))
        for run, figure, unit in (('loss', 'loss and gradients', 'tokens/s'),
                                  ('sample', 'sampler', 'sampled tokens/s')):
            replies = paired.in_turn(
                {'ours': paired.Lane(ours, run), 'theirs': paired.Lane(theirs, run)},
                paired.REPEATS.value)
            seconds = {name: [reply.seconds for reply in lane] for name, lane in replies.items()}
            amount = 8 * 256 if run == 'loss' else sum(map(len, b))
            emit(figure, unit, **paired.compare(amount=amount, **seconds))


if __name__ == '__main__':
    app.run(main)
