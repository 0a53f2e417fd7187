"""The harness: runs in turn, statistics worked by hand, records that are JSON, no torch needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import paired
from benchmarks.setting import Difference, differences

ROOT = Path(__file__).resolve().parents[2]

# A worker whose n-th run takes n seconds by its own clock, and which prints beside the protocol.
WORKER = """
import sys
from benchmarks import paired
print('set-up prints this')
count = 0
def run(word):
    global count
    count += 1
    print('a library prints that')
    if word == 'die':
        sys.exit(3)
    return float(count), word * count
paired.serve({'count': run}, {'number': 7})
"""


def worker(name='ours'):
    return paired.Worker(name, [sys.executable, '-c', WORKER])


def test_a_worker_answers_on_its_pipe_whatever_it_prints():
    with worker() as made:
        assert made.facts == {'number': 7}
        assert made.run('count', word='ab') == paired.Reply(1.0, 'ab')
        assert made.run('count', word='ab') == paired.Reply(2.0, 'abab')


def test_a_worker_that_dies_is_named_with_its_exit_code():
    with worker('theirs') as made, pytest.raises(RuntimeError, match="'theirs' ended with code 3"):
        made.run('count', word='die')


def test_lanes_run_strictly_in_turn():
    order = []

    def lane(name):
        def run():
            order.append(name)
            return paired.Reply(float(len(order)), name)
        return run

    replies = paired.in_turn({name: lane(name) for name in 'abc'}, 2)
    assert order == ['a', 'b', 'c', 'a', 'b', 'c']
    assert [reply.seconds for reply in replies['b']] == [2.0, 5.0]


def test_compare_gives_the_medians_worked_by_hand():
    values = paired.compare(ours=[2.0, 1.0, 9.0], theirs=[8.0, 12.0, 9.0], amount=10)
    assert values['ours'] == {
        'seconds': [2.0, 1.0, 9.0], 'median': 2.0, 'min': 1.0, 'max': 9.0, 'rate': 5.0}
    assert values['theirs']['median'] == 9.0 and values['theirs']['rate'] == 1.1111
    assert values['ratio'] == 4.5
    # Of runs that came one after the other: 8 / 2, 12 / 1, 9 / 9.
    assert (values['ratio_min'], values['ratio_max']) == (1.0, 12.0)


def test_an_even_number_of_runs_has_the_mean_of_the_middle_two_as_median():
    assert paired.spread([4.0, 1.0, 3.0, 100.0])['median'] == 3.5


def test_both_sides_need_as_many_runs():
    with pytest.raises(ValueError):
        paired.compare([1.0, 2.0], [1.0])


def test_a_record_says_how_it_was_taken_and_is_one_json_line(tmp_path, capsys):
    out = tmp_path / 'results.jsonl'
    with worker() as made:
        conditions = paired.Conditions('rollouts', (made,), threads=2, cores=[0, 1])
        for figure in ('greedy', 'sampled'):
            paired.emit(conditions.record(figure, 'trajectories/s', ratio=4.5), str(out))
    lines = out.read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    greedy, sampled = map(json.loads, lines)
    assert (greedy['figure'], sampled['figure']) == ('greedy', 'sampled')
    assert greedy['ratio'] == 4.5 and greedy['unit'] == 'trajectories/s'
    assert greedy['workers'] == {'ours': {'number': 7}}
    assert (greedy['threads'], greedy['cores']) == (2, [0, 1])
    head = subprocess.run(
        ['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert greedy['vrag_jax'].rstrip('+') == head
    assert greedy['date'].endswith('+00:00')


def test_the_command_holds_no_path_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, 'orig_argv', [
        '/somewhere/bin/python3', '-m', 'benchmarks.rollouts', '--run=/home/me/runs/tiny',
        f'--run_config={ROOT}/configs/tiny.py', '--repeats=5'])
    assert paired.command() == (
        'python -m benchmarks.rollouts --run=tiny --run_config=configs/tiny.py --repeats=5')


def test_versions_are_those_installed():
    import jax
    assert paired.versions('jax') == {'python': sys.version.split()[0], 'jax': jax.__version__}


def test_differences_are_the_first_tokens_that_differ():
    ours = [[1, 2, 3], [1, 2, 3], [1, 2], [5]]
    theirs = [[1, 2, 3], [1, 9, 3], [1, 2, 4], [6]]
    assert differences(ours, theirs) == [
        Difference(1, 1, 2, 9), Difference(2, 2, -1, 4), Difference(3, 0, 5, 6)]


@pytest.mark.parametrize('name', ['rollouts', 'update', 'flops'])
def test_a_benchmark_tells_its_flags_without_torch(name):
    # As where torch is not installed, wherever these tests run.
    code = f"""
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'torch':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
sys.argv = ['{name}', '--helpfull']
runpy.run_module('benchmarks.{name}', run_name='__main__')
"""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert '--repeats' in done.stdout and '--run' in done.stdout, done.stderr


@pytest.mark.parametrize('name', ['rollouts', 'update'])
def test_a_pair_says_that_it_needs_a_python_with_torch(name):
    done = subprocess.run(
        [sys.executable, '-m', f'benchmarks.{name}'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and 'torch_python' in done.stderr
