"""Writes RESULTS.md from the JSON lines that the benchmarks have appended to a file.

    python -m benchmarks.render --results=benchmarks/results.jsonl --rendered=benchmarks/RESULTS.md
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

_RESULTS = flags.DEFINE_string('results', 'benchmarks/results.jsonl', 'What was measured.')
_RENDERED = flags.DEFINE_string('rendered', 'benchmarks/RESULTS.md', 'The page to write.')

TITLES = {
    'rollouts': 'Rollouts against a loop over `generate` (torch, transformers)',
    'update': 'Update against torch and transformers',
    'tunix': 'Loss and sampler against google-tunix',
    'flops': "Operations of a GRPO step against the reference's algorithm",
    'startup': 'Start-up',
    'scaling': 'Scaling',
    'loading': 'Real-size checkpoints',
    'ingestion': 'Ingestion of PDFs',
    'word_search': 'Search by words among many pages',
    'search_service': 'Search service under load',
    'service_day': 'A day of the search service in small',
    'late_interaction': 'Late interaction against exact MaxSim',
    'single_vectors': 'Single vectors against faiss',
    'retrieval_quality': 'Quality of page search',
}
# What is said of how a record was taken, and not of what was found.
CONDITIONS = {'benchmark', 'figure', 'unit', 'workers', 'versions', 'threads', 'cores', 'malloc',
              'machine', 'vrag_jax', 'command', 'date'}


def load(lines: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns records by benchmark; of two of the same figure the later one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        record = json.loads(line)
        found[record['benchmark'], record['figure']] = record
    out: dict[str, list[dict[str, Any]]] = {}
    for (benchmark, _), record in found.items():
        out.setdefault(benchmark, []).append(record)
    return out


def render(records: Mapping[str, Sequence[Mapping[str, Any]]], notes: str = '') -> str:
    """Returns the page: a section and a table for each benchmark.

    Args:
      records: by benchmark.
      notes: Markdown that stands before the tables.
    """
    parts = ['# Results\n', notes.rstrip() + '\n' if notes else '']
    for benchmark in [*TITLES, *(b for b in records if b not in TITLES)]:
        rows = records.get(benchmark, ())
        if not rows:
            continue
        parts.append(f'## {TITLES.get(benchmark, benchmark)}\n')
        # Figures of one section may come from several commands.
        by_conditions: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_conditions.setdefault(_conditions(row), []).append(row)
        for conditions, taken in by_conditions.items():
            parts += [conditions + '\n', *_tables(taken)]
    return '\n'.join(part for part in parts if part is not None)


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tables of the figures that were taken under the same conditions."""
    parts = []
    paired_rows = [row for row in rows if 'ratio' in row and isinstance(row.get('ours'), dict)
                   and 'median' in row['ours']]
    if paired_rows:
        parts.append('| figure | ours, s | theirs, s | ours, per s | ratio |\n'
                     '|---|---|---|---|---|')
        parts += [f'| {row["figure"]} | {_time(row["ours"])} | {_time(row["theirs"])} '
                  f'| {row["ours"]["rate"]:,.1f} {row["unit"].removesuffix("/s")} '
                  f'| **{row["ratio"]:.2f}** ({row["ratio_min"]:.2f} to '
                  f'{row["ratio_max"]:.2f}) |' for row in paired_rows]
        parts.append('')
    others = [row for row in rows if row not in paired_rows]
    if others:
        parts.append('| figure | found |\n|---|---|')
        parts += [f'| {row["figure"]} | {_values(row)} |' for row in others]
        parts.append('')
    return parts


def _time(side: Mapping[str, float]) -> str:
    return f'{side["median"]:.3g} ({side["min"]:.3g} to {side["max"]:.3g})'


def _values(row: Mapping[str, Any]) -> str:
    if 'median' in row:
        more = {k: v for k, v in row.items() if k not in CONDITIONS
                and k not in ('median', 'min', 'max', 'seconds')}
        return '; '.join([f'{_time(row)} {row["unit"]}', *_fields(more)])
    return '; '.join(_fields({k: v for k, v in row.items() if k not in CONDITIONS}))


def _fields(values: Mapping[str, Any]) -> list[str]:
    out = []
    for name, value in values.items():
        if isinstance(value, list):
            if value and isinstance(value[0], dict) and 'setting' in value[0]:
                out.append(', '.join(
                    f'{p["setting"]}: {p["median"]:.3g} s' + (
                        f' ({p["trajectories_per_s"]:,.1f} trajectories/s)'
                        if 'trajectories_per_s' in p else '') for p in value))
            elif value:
                out.append(f'{name.replace("_", " ")} {len(value)}')
        elif isinstance(value, dict):
            inner = ', '.join(f'{k} {_short(v)}' for k, v in value.items()
                              if not isinstance(v, list | dict))
            out.append(f'{name.replace("_", " ")}: {inner}')
        else:
            out.append(f'{name.replace("_", " ")} {_short(value)}')
    return out


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def _conditions(row: Mapping[str, Any]) -> str:
    """One paragraph: date, commit ('+': changed since), versions, cores, command."""
    versions = dict(row.get('versions', {}))
    for worker in row.get('workers', {}).values():
        versions |= {name: version for name, version in worker.items()
                     if isinstance(version, str)}
    told = ', '.join(f'{name} {version}' for name, version in versions.items())
    threads = f', {row["threads"]} CPU cores a side' if row.get('threads') else ''
    commit = row['vrag_jax'][:10] + '+' * row['vrag_jax'].endswith('+')
    return (f'{row["date"][:10]}, vrag_jax {commit}{threads}'
            f'{", " + told if told else ""}.\n\n    {row["command"]}')


def main(_: list[str]) -> None:
    lines = Path(_RESULTS.value).read_text(encoding='utf-8').splitlines()
    notes = Path(_RESULTS.value).with_name('notes.md')
    page = render(load(lines), notes.read_text(encoding='utf-8') if notes.exists() else '')
    Path(_RENDERED.value).write_text(page.rstrip() + '\n', encoding='utf-8')


if __name__ == '__main__':
    app.run(main)
