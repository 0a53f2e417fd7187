"""The file `results.json`: the figures of every method of a run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Methods of the results table, in its order; others follow under their own names.
METHOD_LABELS = {
    'vanilla_rag': 'Vanilla RAG',
    'no_crop': 'SFT + GRPO, no crop',
    'pretrained': 'Pretraining only',
    'sft': 'SFT',
    'sft_greedy': 'SFT, greedy',
    'before': 'Before training',
    'policy': 'Policy',
    'grpo': 'SFT + GRPO',
    'grpo_greedy': 'SFT + GRPO, greedy',
}


def save_results(
    path: Path, methods: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> None:
    """Writes the results of a run; the file is there as a whole or not at all.

    Args:
      path: the file.
      methods: what `metrics.summarize` returned, by method.
      run: facts about the run (config, seed, seconds, ...), numbers or strings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    content = {'methods': methods, 'run': run}
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(part, path)


def load_results(path: Path) -> dict[str, dict[str, Any]]:
    """Reads what `save_results` wrote: {'methods': ..., 'run': ...}.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not JSON or a method has no accuracy; names the file
        and the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no results here; run the evaluation first')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}: not JSON: {error}') from error
    if not isinstance(content, dict) or not isinstance(content.get('methods'), dict):
        raise ValueError(f"{path}: 'methods' must be a mapping from method to figures")
    for name, figures in content['methods'].items():
        if not isinstance(figures, dict) or 'value' not in figures.get('accuracy', {}):
            raise ValueError(f"{path}: 'methods.{name}.accuracy.value' is missing")
    return {'methods': content['methods'], 'run': content.get('run', {})}


def judge_of(run: Mapping[str, Any]) -> str:
    """Returns who judged the answers of a run, from the facts about it.

    Where none is named the results are of a time when accuracy was exact match always.
    """
    return run.get('judge', 'rule: exact')


def ordered_methods(methods: Mapping[str, Any]) -> list[str]:
    """Returns the names of methods in the order in which a table lists them."""
    known = [name for name in METHOD_LABELS if name in methods]
    return known + [name for name in methods if name not in METHOD_LABELS]
