"""Runs a config with every combination of some values, one run after the other.

    python launch/sweep.py --config=configs/tiny.py --workdir=runs/sweep \\
        --sweep=seed=0,1,2 --sweep=grpo.learner.lr=1e-4,3e-4
"""

import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

Override = tuple[str, str]


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """Splits 'field=a,b' into the field and its values.

    Raises:
      ValueError: if there is no field, or a value is empty or stands there twice.
    """
    field, equals, rest = text.partition('=')
    values = split_values(rest)
    if not equals or not re.fullmatch(r'\w+(\.\w+)*', field) or '' in values:
        raise ValueError(f"--sweep={text}: expected 'field=value,value'")
    if len(set(values)) < len(values):
        raise ValueError(f'--sweep={text}: a value stands there twice')
    return field, values


def split_values(text: str) -> list[str]:
    """Splits at commas that are not inside brackets."""
    values, depth = [''], 0
    for char in text:
        depth += (char in '([{') - (char in ')]}')
        if char == ',' and depth == 0:
            values.append('')
        else:
            values[-1] += char
    return [value.strip() for value in values]


def expand(sweeps: Sequence[str]) -> list[tuple[Override, ...]]:
    """Returns all combinations, the last field changing fastest.

    Args:
      sweeps: texts for `parse_sweep`, each of another field.

    Raises:
      ValueError: if a field comes twice, a text cannot be parsed, or two runs would
        have the same folder.
    """
    parsed = [parse_sweep(text) for text in sweeps]
    fields = [field for field, _ in parsed]
    if len(set(fields)) < len(fields):
        raise ValueError(f'--sweep: a field comes twice among {fields}')
    runs = list(itertools.product(*([(field, v) for v in values] for field, values in parsed)))
    if len(set(map(run_name, runs))) < len(runs):
        raise ValueError(f'--sweep: two of {list(sweeps)} would run in the same folder')
    return runs


def run_name(overrides: Sequence[Override]) -> str:
    """Returns the name of a run's folder, e.g. 'seed=0,grpo.learner.lr=1e-6'."""
    text = ','.join(f'{field}={value}' for field, value in overrides)
    return re.sub(r'[^\w.=,+-]+', '_', text) or 'base'


def command(config: str, workdir: Path, overrides: Sequence[Override]) -> list[str]:
    """Returns the command of a run."""
    return [sys.executable, '-m', 'vrag_jax.main', f'--config={config}', f'--workdir={workdir}',
            *(f'--config.{field}={value}' for field, value in overrides)]


def accuracies(workdir: Path) -> str:
    """Returns the judge and 'method accuracy' of a run's results; '' without results."""
    path = workdir / 'results.json'
    if not path.is_file():
        return ''
    results = json.loads(path.read_text(encoding='utf-8'))
    judge = results.get('run', {}).get('judge', 'rule: exact')
    return '  '.join([f'({judge})', *(f'{name} {figures["accuracy"]["value"]:.3f}'
                                      for name, figures in results['methods'].items())])


def run_sweep(
    config: str, workdir: Path, runs: Sequence[Sequence[Override]], keep_going: bool
) -> int:
    """Runs each combination, and prints a summary.

    Args:
      config: config file.
      workdir: gets a folder for every run; runs that stand there go on or are done.
      runs: the overrides of each run.
      keep_going: whether the other runs follow after one has failed.

    Returns:
      How many runs failed.
    """
    summary: list[str] = []
    failed = 0
    for overrides in runs:
        name = run_name(overrides)
        line = command(config, workdir / name, overrides)
        print(shlex.join(line), flush=True)
        started = time.monotonic()
        code = subprocess.run(line, check=False).returncode
        minutes = (time.monotonic() - started) / 60
        outcome = f'failed ({code})' if code else accuracies(workdir / name) or 'done'
        summary.append(f'{name}: {outcome}, {minutes:.1f} min')
        failed += code != 0
        if code and not keep_going:
            break
    print('\n'.join(['', *summary, f'{len(summary)} of {len(runs)} run, {failed} failed']))
    return failed


# Defined only when this is the program: vrag_jax.main has flags of the same names.
if __name__ == '__main__':
    CONFIG = flags.DEFINE_string(
        'config', None, 'Config file, as of vrag_jax.main.', required=True)
    WORKDIR = flags.DEFINE_string(
        'workdir', None, 'Gets a folder for every run.', required=True)
    SWEEP = flags.DEFINE_multi_string(
        'sweep', [], "A field and its values, 'grpo.learner.lr=1e-6,2e-6'; commas inside brackets "
        'belong to a value. Several flags make all combinations.')
    KEEP_GOING = flags.DEFINE_bool(
        'keep_going', False, 'Whether the other runs follow after one has failed.')
    DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Prints the commands and runs nothing.')

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f'unexpected arguments: {list(argv[1:])}')
        try:
            runs = expand(SWEEP.value)
        except ValueError as error:
            raise app.UsageError(str(error)) from error
        workdir = Path(WORKDIR.value)
        if DRY_RUN.value:
            for overrides in runs:
                print(shlex.join(command(CONFIG.value, workdir / run_name(overrides), overrides)))
        else:
            sys.exit(run_sweep(CONFIG.value, workdir, runs, KEEP_GOING.value) > 0)

    app.run(main)
