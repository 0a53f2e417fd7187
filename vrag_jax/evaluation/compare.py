"""The results table of several runs, such as three seeds, in Markdown.

    python -m vrag_jax.evaluation.compare runs/seeds/*
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vrag_jax.evaluation.results import METHOD_LABELS, load_results, ordered_methods

# Figures of the table's columns, by heading.
COLUMNS = {
    'accuracy': 'accuracy', 'ANLS': 'anls', 'NDCG': 'ndcg', 'recall': 'recall',
    'zoomed': 'zoomed', 'invalid actions': 'invalid', 'finished': 'finished', 'turns': 'turns',
}


def compare(workdirs: Sequence[Path]) -> str:
    """Returns a Markdown table of the methods of several runs.

    Args:
      workdirs: folders of finished runs.

    Returns:
      A row a method; in each column the mean over the runs and, of several runs, the
      smallest and the largest value.

    Raises:
      FileNotFoundError: if a folder holds no results.
      ValueError: if there is no folder, or the runs did not measure the same methods;
        names the folder.
    """
    if not workdirs:
        raise ValueError('no run was given: pass the folders of finished runs')
    runs = [load_results(folder / 'results.json')['methods'] for folder in workdirs]
    names = ordered_methods(runs[0])
    for folder, methods in zip(workdirs, runs, strict=True):
        if set(methods) != set(names):
            raise ValueError(f'{folder}: holds the methods {sorted(methods)}, but '
                             f'{workdirs[0]} holds {sorted(names)}')
    lines = ['| method | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 1) + '|']
    for name in names:
        cells = [_cell([methods[name][figure]['value'] for methods in runs])
                 for figure in COLUMNS.values()]
        lines.append('| ' + ' | '.join([METHOD_LABELS.get(name, name), *cells]) + ' |')
    return '\n'.join(lines)


def _cell(values: Sequence[float]) -> str:
    mean = f'{sum(values) / len(values):.2f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.2f} to {max(values):.2f})'


def main() -> None:
    try:
        print(compare([Path(folder) for folder in sys.argv[1:]]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
