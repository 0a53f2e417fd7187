"""What GRPO takes on TPUs that are not here: fills the tables of docs/SCALING.md.

    python -m benchmarks.topologies [--only=REGEX] [--folder=runs/topologies]

Every row is `config.task='compile'` of a config, in a process of its own; rows whose result
is in the folder already are not compiled again. Needs the extras `tpu-aot` and
`quantization`, and no TPU.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / 'docs' / 'SCALING.md'
GIB = 2**30

_ONLY = flags.DEFINE_string('only', '', 'Regular expression of the rows to compile.')
_FOLDER = flags.DEFINE_string('folder', 'runs/topologies', 'Where results are kept.')


@dataclasses.dataclass(frozen=True)
class Row:
    """A policy on chips.

    Attributes:
      policy: as it is shown.
      config: name of the config.
      topology: chips.
      flags: overrides, without `--config.`.
    """

    policy: str
    config: str
    topology: str
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return re.sub(r'\W+', '_', f'{self.policy}_{self.topology}')

    @property
    def command(self) -> str:
        """What a user types, without the work directory."""
        return ' '.join((f'--config=configs/{self.config}.py', '--config.task=compile',
                         f'--config.compile.topology={self.topology}',
                         *(f'--config.{flag}' for flag in self.flags)))


def full(policy: str, config: str, topology: str, fsdp: int, tensor: int = 1,
         more: tuple[str, ...] = ()) -> Row:
    """A row of full training: one row of a micro-batch a data shard."""
    return Row(policy, config, topology, (
        f'mesh.fsdp={fsdp}', f'mesh.tensor={tensor}', f'grpo.learner.rows={fsdp}', *more))


ROWS = (
    Row('3B LoRA', 'grpo_3b_lora_16gb', 'v5e:1x1'),
    Row('7B LoRA, int8, 24 GB', 'grpo_7b_lora_24gb', 'v6e:1x1', ('compile.memory_gib=22.3',)),
    Row('7B LoRA', 'grpo_7b_lora_24gb', 'v6e:1x1', ('policy.quantization=',)),
    full('3B full', 'grpo_3b', 'v6e:2x2', 4, more=('sampler.slots=24',)),
    full('7B full', 'grpo_7b', 'v5p:2x2x1', 4),
    full('7B full', 'grpo_7b', 'v6e:4x4', 16),
    full('7B full', 'grpo_7b', 'v5e:4x8', 8, 4, more=('vision_features.rows=65536',)),
    full('32B full', 'grpo_7b', 'v5p:4x4x2', 32,
         more=('policy.preset=qwen2_5_vl_32b', 'sampler.slots=160')),
    full('72B full', 'grpo_7b', 'v5p:4x4x4', 32, 2,
         more=('policy.preset=qwen2_5_vl_72b', 'sampler.slots=160')),
)


def compile_row(row: Row, folder: Path) -> dict[str, Any]:
    """Returns `compile.json` of a row; compiles it if it is not there."""
    workdir = folder / row.name
    result = workdir / 'compile.json'
    if not result.is_file():
        done = subprocess.run(
            [sys.executable, '-m', 'vrag_jax.main', f'--workdir={workdir}',
             *(part for part in row.command.split(' '))],
            cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
        if not result.is_file():
            raise SystemExit(f'{row.name}: ended with {done.returncode} and no {result}')
    return json.loads(result.read_text())


def summary(results: list[tuple[Row, dict[str, Any]]]) -> Iterator[str]:
    """Lines of the table of policies."""
    yield ('| policy | topology | mesh | fits | fullest program | of | an iteration: rollouts '
           '| scoring | update | MFU of the update | its work / least |')
    yield '|---|---|---|---|---|---|---|---|---|---|---|'
    for row, result in results:
        programs = result['programs']
        fullest = max(programs, key=lambda p: p['total'])
        over = fullest['total'] / GIB - result['memory_gib']
        fits = 'yes' if all(p['fits'] for p in programs) else f'{over:.2f} GiB too much'
        if any(p['error'] for p in programs):
            fits = 'does not compile'
        seconds = result['iteration_seconds']
        learning = next(p for p in programs if p['program'] == 'grpo: gradients')
        rollouts, scoring, update = (
            sum(s for name, s in seconds.items() if name.startswith(prefixes)) for prefixes in (
                ('encode', 'prefill', 'decode'), ('grpo: log-probs',),
                ('grpo: gradients', 'grpo: optimiser')))
        mesh = ', '.join(f'{k} {v}' for k, v in result['mesh'].items() if v > 1) or 'one chip'
        mfu = learning['mfu_at_bound'] or 0
        yield (f'| {row.policy} | {row.topology} | {mesh} | {fits} '
               f'| {fullest["program"]}, {fullest["total"] / GIB:.1f} GiB '
               f'| {result["memory_gib"]:.1f} GiB | {rollouts:.0f} s | {scoring:.0f} s '
               f'| {update:.0f} s | {mfu:.0%} | {learning["flops_over_minimum"] or 0:.2f} |')


def details(row: Row, result: dict[str, Any]) -> Iterator[str]:
    """Lines of the table of a row's programs."""
    yield f'### {row.policy} on {row.topology}\n'
    yield f'`{row.command}`\n'
    yield ('| program | arguments | temporaries | held | total GiB | Tflop | memory GB | sent GB '
           '| bound | limited by | calls | compiled in |')
    yield '|' + '---|' * 12
    for program in result['programs']:
        if program['error']:
            yield f'| {program["program"]} | {program["error"]} |' + ' |' * 10
            continue
        sizes = ' | '.join(f'{program[name] / GIB:.2f}' for name in (
            'arguments', 'temporaries', 'resident', 'total'))
        sent = sum(exchange['sent'] for exchange in program['collectives'].values())
        yield (f'| {program["program"]} | {sizes} | {program["flops"] / 1e12:.1f} '
               f'| {program["bytes"] / 1e9:.0f} | {sent / 1e9:.1f} '
               f'| {max(program["bound_seconds"].values()):.3f} s | {program["limit"]} '
               f'| {program["calls"]:.0f} | {program["compile_seconds"]:.0f} s |')
    yield ''


def replace_section(text: str, name: str, lines: list[str]) -> str:
    """Returns a document with the lines between `<!-- NAME -->` and `<!-- end NAME -->` new.

    Raises:
      ValueError: if the document has no such section.
    """
    start, end = f'<!-- {name} -->', f'<!-- end {name} -->'
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f'{DOCUMENT}: needs {start} and {end} once each')
    head, rest = text.split(start)
    return head + start + '\n' + '\n'.join(lines) + '\n' + end + rest.split(end)[1]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f'unexpected arguments: {argv[1:]}')
    folder = ROOT / _FOLDER.value
    results = []
    for row in ROWS:
        if re.search(_ONLY.value, row.name):
            results.append((row, compile_row(row, folder)))
    if len(results) < len(ROWS):
        print('\n'.join(summary(results)))
        return
    text = replace_section(DOCUMENT.read_text(), 'summary', list(summary(results)))
    lines = [line for row, result in results for line in details(row, result)]
    DOCUMENT.write_text(replace_section(text, 'programs', lines))


if __name__ == '__main__':
    app.run(main)
