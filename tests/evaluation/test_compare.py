"""The table of several runs, by hand."""

import json
import subprocess
import sys

import pytest

from vrag_jax.evaluation.compare import COLUMNS, compare
from vrag_jax.evaluation.results import save_results


def write_run(folder, run=None, **accuracies):
    folder.mkdir()
    methods = {name: {figure: {'value': value if figure == 'accuracy' else 0.5}
                      for figure in COLUMNS.values()}
               for name, value in accuracies.items()}
    save_results(folder / 'results.json', methods, run or {})
    return folder


def test_mean_and_ends_over_runs_in_the_order_of_the_table(tmp_path):
    runs = [write_run(tmp_path / str(i), grpo=value, vanilla_rag=0.1)
            for i, value in enumerate((0.8, 0.9, 0.85))]
    rest = ' | '.join(['0.50 (0.50 to 0.50)'] * (len(COLUMNS) - 1))
    assert compare(runs).splitlines()[2:] == [
        f'| Vanilla RAG | 0.10 (0.10 to 0.10) | {rest} |',
        f'| SFT + GRPO | 0.85 (0.80 to 0.90) | {rest} |']


def test_one_run_has_no_spread(tmp_path):
    table = compare([write_run(tmp_path / 'run', sft=0.25)])
    assert table.splitlines()[0].startswith(
        '| method | accuracy (rule: exact) | exact match | ANLS | F1 |')
    assert table.splitlines()[2].startswith('| SFT | 0.25 | 0.50 |')


def test_the_table_names_the_judge_wherever_it_is_served(tmp_path):
    runs = [write_run(tmp_path / name, {'judge': f'model: m at http://{name}'}, sft=0.5)
            for name in 'ab']
    assert compare(runs).splitlines()[0].startswith('| method | accuracy (model: m) |')


def test_a_figure_that_an_older_run_does_not_have_stays_empty(tmp_path):
    old, new = write_run(tmp_path / 'old', sft=0.2), write_run(tmp_path / 'new', sft=0.4)
    content = json.loads((old / 'results.json').read_text())
    del content['methods']['sft']['f1']
    (old / 'results.json').write_text(json.dumps(content))
    assert compare([old, new]).splitlines()[2].startswith(
        '| SFT | 0.30 (0.20 to 0.40) | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) | - | ')


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    runs = [write_run(tmp_path / 'a', sft=0.2), write_run(tmp_path / 'b', grpo=0.2)]
    with pytest.raises(ValueError, match=r"b: holds the methods \['grpo'\]"):
        compare(runs)
    by_model = write_run(tmp_path / 'c', {'judge': 'model: m at http://h:1'}, sft=0.2)
    with pytest.raises(ValueError, match=r"c: accuracy is by 'model: m', but in .*a by 'rule: ex"):
        compare([runs[0], by_model])
    with pytest.raises(ValueError, match='no run'):
        compare([])


def test_a_missing_result_is_named_on_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'vrag_jax.evaluation.compare', str(tmp_path)],
        capture_output=True, text=True)
    assert done.returncode == 1 and f'{tmp_path}/results.json: no results here' in done.stderr
