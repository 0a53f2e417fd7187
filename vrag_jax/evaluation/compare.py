"""The results table of several runs, such as three seeds, in Markdown.

    python -m vrag_jax.evaluation.compare runs/seeds/*
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vrag_jax.actions.registry import usage_figures
from vrag_jax.evaluation.results import METHOD_LABELS, judge_of, load_results, ordered_methods

# Figures of the table's columns, by heading.
COLUMNS = {
    'accuracy': 'accuracy', 'exact match': 'exact_match', 'ANLS': 'anls', 'F1': 'f1',
    'NDCG': 'ndcg', 'recall': 'recall', 'invalid actions': 'invalid', 'finished': 'finished',
    'turns': 'turns',
}


def compare(workdirs: Sequence[Path]) -> str:
    """Returns a Markdown table of the methods of several runs.

    Args:
      workdirs: folders of finished runs.

    Returns:
      A row a method; in each column the mean over the runs and, of several runs, the
      smallest and the largest value; '-' for a figure that a run does not have.

    Raises:
      FileNotFoundError: if a folder holds no results.
      ValueError: if there is no folder, or the runs did not measure the same methods or
        had other judges; names the folder.
    """
    if not workdirs:
        raise ValueError('no run was given: pass the folders of finished runs')
    results = [load_results(folder / 'results.json') for folder in workdirs]
    # Where a judge model is served does not matter.
    judges = [judge_of(each['run']).partition(' at ')[0] for each in results]
    for folder, judge in zip(workdirs, judges, strict=True):
        if judge != judges[0]:
            raise ValueError(f'{folder}: accuracy is by {judge!r}, but in {workdirs[0]} by '
                             f'{judges[0]!r}')
    runs = [each['methods'] for each in results]
    names = ordered_methods(runs[0])
    for folder, methods in zip(workdirs, runs, strict=True):
        if set(methods) != set(names):
            raise ValueError(f'{folder}: holds the methods {sorted(methods)}, but '
                             f'{workdirs[0]} holds {sorted(names)}')
    used = usage_figures(figures for methods in runs for figures in methods.values())
    columns = COLUMNS | {name: name for name in used}
    headings = [f'{name} ({judges[0]})' if name == 'accuracy' else name for name in columns]
    lines = ['| method | ' + ' | '.join(headings) + ' |', '|---' * (len(columns) + 1) + '|']
    for name in names:
        cells = [_cell([methods[name][figure]['value'] for methods in runs
                        if figure in methods[name]], len(runs))
                 for figure in columns.values()]
        lines.append('| ' + ' | '.join([METHOD_LABELS.get(name, name), *cells]) + ' |')
    return '\n'.join(lines)


def _cell(values: Sequence[float], runs: int) -> str:
    if len(values) < runs:
        return '-'
    mean = f'{sum(values) / len(values):.2f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.2f} to {max(values):.2f})'


def main() -> None:
    try:
        print(compare([Path(folder) for folder in sys.argv[1:]]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
