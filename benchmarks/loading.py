"""Checkpoints of real size: memory and time of writing them, reading them and saving them again.

    python -m benchmarks.loading --preset=qwen2_5_vl_3b --param_dtype=bfloat16 --devices=8

A random checkpoint of the preset in HF's format is written to a folder that is deleted
afterwards. Each run is a process of its own. What is read is what was written, and what
is saved again the same files, or this fails.
"""

import filecmp
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import paired

_PRESET = flags.DEFINE_string('preset', 'qwen2_5_vl_3b', 'Sizes of the model.')
_DTYPE = flags.DEFINE_enum(
    'param_dtype', 'bfloat16', ['bfloat16', 'float32'], 'Of the parameters.')
_DEVICES = flags.DEFINE_integer(
    'devices', 8, 'Simulated devices over which the model is split when it is read.',
    lower_bound=1)
_SHARD_GB = flags.DEFINE_float('max_shard_gb', 5.0, 'Most gigabytes of a file.', lower_bound=0.001)
_FOLDER = flags.DEFINE_string(
    'folder', None, "Where the checkpoints are written and deleted; the system's by default.")
_STAGES = flags.DEFINE_multi_enum(
    'stage', ['write', 'read', 'save'], ['write', 'read', 'save'],
    'What is done; reading needs memory for the whole model, saving also disk for a second one.')


def start(devices: int, forget: Path | None = None) -> paired.Worker:
    """Starts a worker with so many simulated devices.

    Args:
      devices: see `--devices`.
      forget: checkpoint that is dropped from the system's cache of files before.
    """
    options = json.dumps({
        'preset': _PRESET.value, 'dtype': _DTYPE.value,
        'max_shard_bytes': round(_SHARD_GB.value * 1e9), 'forget': str(forget or '')})
    # The allocator of the system as it is: settings for speed keep what has been freed.
    return paired.Worker(
        f'{devices} devices', [sys.executable, '-m', 'benchmarks.loading_worker', options],
        {**paired.thread_environment(paired.THREADS.value), 'GLIBC_TUNABLES': '',
         'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'})


def within(grown: Mapping[str, float], held_gb: float, shard_gb: float) -> dict[str, Any]:
    """Compares memory with its bound: the process's own weights and two shards.

    Args:
      grown: gigabytes, see `memory.Peak.grown`.
      held_gb: weights that the process had in the end and not at the start.
      shard_gb: the largest file.

    Raises:
      RuntimeError: if the process took more.
    """
    bound = held_gb + 2 * shard_gb
    if grown['rss'] >= bound:
        raise RuntimeError(f'took {grown["rss"]:.2f} GB: {held_gb:.2f} GB of weights and twice '
                           f'the largest shard are {bound:.2f} GB')
    return {'weights_held_gb': round(held_gb, 4), 'bound_gb': round(bound, 4),
            'beside_weights_gb': {name: round(grown[name] - held_gb * (name != 'file'), 4)
                                  for name in grown}}


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        measure(Path(folder) / 'written', Path(folder) / 'saved', cores)


def measure(written: Path, saved: Path, cores: list[int]) -> None:
    """Runs the stages and prints their figures."""
    setting = f'{_PRESET.value} {_DTYPE.value}'
    with start(devices=1) as worker:
        reply = worker.run('write', path=str(written), seed=0)
        facts = worker.facts
    sizes = [file.stat().st_size / 1e9 for file in written.glob('*.safetensors')]
    total, shard = sum(sizes), max(sizes)
    digests = reply.check.pop('digests')

    def emit(figure: str, worker: paired.Worker, seconds: list[float], **values: Any) -> None:
        conditions = paired.Conditions('loading', [worker], paired.THREADS.value, cores)
        spread = paired.spread(seconds)
        paired.emit(conditions.record(
            f'{setting}: {figure}', 's', **spread, gb_per_s=round(total / spread['median'], 3),
            checkpoint_gb=round(total, 4), shards=len(sizes), largest_shard_gb=round(shard, 4),
            parameters=facts['parameters'], **values), paired.OUT.value)

    emit('written, parameters made one at a time', worker, [reply.seconds],
         **within(reply.check['grown_gb'], 0.0, shard), **reply.check)
    if 'read' not in _STAGES.value:
        return
    for cached in (False, True):
        replies = []
        for repeat in range(paired.REPEATS.value):
            with start(_DEVICES.value, forget=None if cached else written) as worker:
                replies.append(worker.run('read', path=str(written)))
                if worker.run('digests').check != digests:
                    raise RuntimeError('what was read is not what was written')
                last = cached and repeat == paired.REPEATS.value - 1
                again = (worker.run('save', path=str(saved))
                         if last and 'save' in _STAGES.value else None)
        most = max((reply.check for reply in replies), key=lambda check: check['grown_gb']['rss'])
        emit(f'read by {_DEVICES.value} devices, {"" if cached else "not "}in the cache of files',
             worker, [reply.seconds for reply in replies],
             **within(most['grown_gb'], most.pop('held_gb'), shard), **most, equal=True)
    if again is not None:
        names = sorted(file.name for file in written.iterdir())
        equal, *others = filecmp.cmpfiles(written, saved, names, shallow=False)
        if any(others) or sorted(equal) != sorted(file.name for file in saved.iterdir()):
            raise RuntimeError(f'files that were saved again differ: {others}')
        emit(f'saved from {_DEVICES.value} devices', worker, [again.seconds],
             **within(again.check['grown_gb'], 0.0, shard), **again.check, equal=True)
        shutil.rmtree(saved)


if __name__ == '__main__':
    app.run(main)
