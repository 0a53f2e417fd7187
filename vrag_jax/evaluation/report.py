"""The self-contained `report.html` of a run: figures, learning curves, trajectories."""

import base64
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from vrag_jax.actions.registry import usage_figures
from vrag_jax.evaluation.charts import Series, interval_bar, line_chart, running_mean
from vrag_jax.evaluation.display_text import visible
from vrag_jax.evaluation.results import METHOD_LABELS, judge_of, load_results, ordered_methods
from vrag_jax.evaluation.trajectory_io import TrajectoryRecord, load_trajectories
from vrag_jax.metrics import read_rows

# Columns of the results table after the accuracy: figure, heading, whether a share.
COLUMNS = (
    ('exact_match', 'Exact match', True),
    ('anls', 'ANLS', False),
    ('f1', 'F1', False),
    ('ndcg', 'NDCG', False),
    ('recall', 'Recall', False),
    ('invalid', 'Invalid', True),
    ('finished', 'Finished', True),
    ('turns', 'Turns', False),
)
MAX_COLUMNS = 5  # turns beside each other
TINY = 300  # pixels


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of the report.

    Attributes:
      title: its heading.
      metric: name among the values of `metrics.jsonl`.
      phase: the curves are the phases whose name holds this word.
      log_axis: whether it may have a logarithmic axis.
    """

    title: str
    metric: str
    phase: str
    log_axis: bool = False


CHARTS = (
    Chart('Pretraining loss', 'loss', 'pretrain', log_axis=True),
    Chart('SFT loss', 'loss', 'sft', log_axis=True),
    Chart('Reward', 'reward', 'grpo'),
    Chart('Judged score of sampled trajectories', 'accuracy', 'grpo'),
    Chart('Turns', 'turns', 'grpo'),
    Chart('Share of invalid actions', 'invalid', 'grpo'),
    Chart('KL to the reference policy', 'kl', 'grpo'),
)


def write_report(
    workdir: Path, trajectories: Mapping[str, Path], title: str = 'Run report'
) -> Path:
    """Writes `report.html`, one file that needs nothing else.

    Args:
      workdir: holds `results.json` and, if anything was trained, `metrics.jsonl`;
        gets the report.
      trajectories: folders of `save_trajectories` to draw, by heading.
      title: heading of the page.

    Returns:
      The path of the report.

    Raises:
      FileNotFoundError: if the results or trajectories are missing.
      ValueError: if a file is not what it should be; names file and field.
    """
    results = load_results(workdir / 'results.json')
    metrics = workdir / 'metrics.jsonl'
    rows = read_rows(metrics) if metrics.exists() else []
    page = _environment().get_template('report.html.j2').render(
        title=title,
        run=results['run'],
        judge=judge_of(results['run']),
        columns=[heading for _, heading, _ in _columns(results['methods'])],
        methods=_table(results['methods']),
        breakdowns=_breakdowns(results['methods']),
        charts=_charts(rows),
        sections=[(heading, load_trajectories(folder)) for heading, folder in trajectories.items()],
    )
    path = workdir / 'report.html'
    part = path.with_suffix('.part')
    part.write_text(page, encoding='utf-8')
    os.replace(part, path)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('vrag_jax.evaluation', 'templates'),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_finalize)
    environment.globals.update(interval_bar=lambda *a: Markup(interval_bar(*a)))
    environment.filters.update(
        percent=_percent, box_style=_box_style, data_uri=data_uri, plain=_plain,
        turns_in_a_row=_turns_in_a_row, is_tiny=_is_tiny)
    return environment


def _finalize(value: Any) -> Any:
    """What is done to every value before it is written; markup is our own."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _columns(methods: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Returns `COLUMNS` and, before the turns, one for each action whose use was measured."""
    used = usage_figures(methods.values())
    return [*COLUMNS[:-1], *((name, name.capitalize(), True) for name in used), COLUMNS[-1]]


def _table(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the results table; a figure that a method lacks stays empty."""
    rows, columns = [], _columns(methods)
    for name in ordered_methods(methods):
        figures = methods[name]
        cells = []
        for key, _, is_share in columns:
            figure = figures.get(key)
            text = '' if figure is None else (
                _percent(figure['value']) if is_share else f'{figure["value"]:.2f}')
            cells.append((text, figure))
        rows.append({'label': METHOD_LABELS.get(name, name), 'n': figures.get('n', ''),
                     'accuracy': figures['accuracy'], 'cells': cells})
    return rows


def _breakdowns(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of accuracy by kind of question."""
    tables = []
    for key, title in (('by_source_type', 'By source of the answer'),
                       ('by_query_type', 'By number of pages needed')):
        groups = sorted({group for figures in methods.values() for group in figures.get(key, {})})
        rows = [(METHOD_LABELS.get(name, name),
                 [methods[name].get(key, {}).get(group) for group in groups])
                for name in ordered_methods(methods)]
        # The number of questions stands in the heading where all methods share it.
        sizes = [{cells[i]['n'] for _, cells in rows if cells[i]} for i in range(len(groups))]
        shared = [size.pop() if len(size) == 1 else None for size in sizes]
        if groups:
            tables.append({'title': title, 'rows': rows,
                           'groups': list(zip(groups, shared, strict=True))})
    return tables


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Draws each chart for which there are at least two finite points."""
    drawn = []
    for chart in CHARTS:
        series = _series(rows, chart)
        if series:
            drawn.append({
                'title': chart.title,
                'legend': [(s.label if len(series) > 1 else '',
                            f'{running_mean(s.values)[-1]:.3g}') for s in series],
                'svg': Markup(line_chart(chart.title, series, chart.log_axis)),
            })
    return drawn


def _series(rows: Sequence[Mapping[str, Any]], chart: Chart) -> list[Series]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = row['values'].get(chart.metric)
        if chart.phase in row['phase'] and value is not None and math.isfinite(value):
            points.setdefault(row['phase'], []).append((row['step'], value))
    return [
        Series(phase.replace('_', ' '), *np.array(sorted(pairs), np.float64).T)
        for phase, pairs in points.items() if len(pairs) > 1
    ]


def data_uri(record: TrajectoryRecord, index: int) -> str:
    """Returns an image of a trajectory as a `data:` address."""
    path = record.image_path(index)
    kind = 'png' if path.suffix == '.png' else 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


def _box_style(box: Sequence[float], size: Sequence[int]) -> str:
    """CSS that puts a box (pixels) over an image of a size, in percent."""
    x1, y1, x2, y2 = box
    width, height = size
    return (f'left:{100 * x1 / width:.2f}%;top:{100 * y1 / height:.2f}%;'
            f'width:{100 * (x2 - x1) / width:.2f}%;height:{100 * (y2 - y1) / height:.2f}%')


def _is_tiny(size: Sequence[int]) -> bool:
    """Whether an image is so small that its pixels shall be seen as they are."""
    return max(size) < TINY


def _turns_in_a_row(record: TrajectoryRecord) -> int:
    """Columns for the turns of a trajectory: one row, or rows of about equal length."""
    rows = math.ceil(len(record.turns) / MAX_COLUMNS)
    least = 4 if all(_is_tiny(image.size) for image in record.images) else 3
    return max(least, math.ceil(len(record.turns) / max(rows, 1)))


def _percent(value: float) -> str:
    return f'{100 * value:.1f} %'


def _plain(value: Any) -> str:
    """Formats a fact about the run."""
    if isinstance(value, Mapping):
        return ', '.join(f'{name} {_plain(part)}' for name, part in value.items())
    if isinstance(value, float):
        return f'{value:,.3g}' if abs(value) < 1 else f'{value:,.2f}'
    return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)
