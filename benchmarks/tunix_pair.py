"""GRPO loss and sampler of a text-only policy: vrag_jax against google-tunix."""

import sys
import tempfile

from absl import app, flags

from benchmarks.paired import Worker, emit, facts, in_turn

_TUNIX_PYTHON = flags.DEFINE_string(
    'tunix_python', None, 'Python of an environment with google-tunix, see benchmarks/README.md.',
    required=True)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed runs of each side.', lower_bound=1)
_THREADS = flags.DEFINE_integer('threads', 2, 'Cores of each side.', lower_bound=1)
_OUT = flags.DEFINE_string('out', '', 'File to which JSON lines are appended.')


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = Worker(sys.executable, 'benchmarks.tunix_ours', [folder], _THREADS.value)
        theirs = Worker(_TUNIX_PYTHON.value, 'benchmarks.tunix_theirs', [folder], _THREADS.value)
        about = facts(threads=_THREADS.value, **theirs.facts)
        a, b = (worker.ask(what='loss') for worker in (ours, theirs))
        emit(_OUT.value, 'tunix', 'losses', aim=1e-4, value=abs(a['loss'] - b['loss']),
             **{f'{name}_{side}': reply[name] for name in ('loss', 'kl', 'entropy')
                for side, reply in (('ours', a), ('theirs', b))}, **about)
        a, b = (worker.ask(what='sample', tokens_too=True)['tokens'] for worker in (ours, theirs))
        same = sum(x == y for row, other in zip(a, b, strict=True)
                   for x, y in zip(row, other, strict=False))
        emit(_OUT.value, 'tunix', 'identical greedy tokens', value=same,
             of=sum(map(len, a)), **about)
        for what, figure in (('loss', 'loss and gradients'), ('sample', 'sampler')):
            pair = in_turn(ours, theirs, _REPEATS.value, what=what)
            emit(_OUT.value, 'tunix', figure, aim=1.2, **pair.record(), **about)
        ours.close()
        theirs.close()


if __name__ == '__main__':
    app.run(main)
