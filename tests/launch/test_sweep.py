"""A sweep runs every combination once, each in a folder of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch import sweep


def test_all_combinations_with_the_last_field_fastest():
    assert sweep.expand(['seed=0,1', 'grpo.learner.lr=1e-6,2e-6,3e-6']) == [
        (('seed', '0'), ('grpo.learner.lr', '1e-6')),
        (('seed', '0'), ('grpo.learner.lr', '2e-6')),
        (('seed', '0'), ('grpo.learner.lr', '3e-6')),
        (('seed', '1'), ('grpo.learner.lr', '1e-6')),
        (('seed', '1'), ('grpo.learner.lr', '2e-6')),
        (('seed', '1'), ('grpo.learner.lr', '3e-6')),
    ]


def test_no_sweep_is_one_run():
    assert sweep.expand([]) == [()]
    assert sweep.run_name(()) == 'base'


def test_commas_inside_brackets_belong_to_a_value():
    assert sweep.parse_sweep('sampler.lengths=(32, 64),(128,)') == (
        'sampler.lengths', ['(32, 64)', '(128,)'])


def test_values_may_hold_an_equals_sign():
    assert sweep.parse_sweep('instruction=a=b,c') == ('instruction', ['a=b', 'c'])


@pytest.mark.parametrize('texts,message', [
    (['grpo.learner.lr'], 'grpo.learner.lr'),
    (['=1,2'], 'expected'),
    (['seed='], 'expected'),
    (['seed=1,,2'], 'expected'),
    (['seed=1,1'], 'twice'),
    (['seed=1', 'seed=2'], "twice among.*'seed', 'seed'"),
    (['file=a/b,a b'], 'same folder'),
])
def test_a_sweep_that_makes_no_sense_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        sweep.expand(texts)


def test_folders_have_names_that_a_file_system_takes():
    name = sweep.run_name((('policy.checkpoint', '/models/a b'), ('lengths', '(1, 2)')))
    assert name == 'policy.checkpoint=_models_a_b,lengths=_1,_2_'


def test_the_command_sets_each_field():
    line = sweep.command(
        'configs/tiny.py', Path('runs/a'), [('seed', '1'), ('grpo.learner.lr', '1e-6')])
    assert line == [
        sys.executable, '-m', 'vrag_jax.main', '--config=configs/tiny.py', '--workdir=runs/a',
        '--config.seed=1', '--config.grpo.learner.lr=1e-6']


@pytest.fixture
def three_runs(tmp_path, monkeypatch):
    """Three runs of which the second fails; the others leave results."""
    script = (
        'import json, pathlib, sys\n'
        'folder, seed = pathlib.Path(sys.argv[1]), sys.argv[2]\n'
        'folder.mkdir(parents=True)\n'
        'if seed == "1": sys.exit(7)\n'
        'results = {"methods": {"grpo": {"accuracy": {"value": 0.5 + int(seed) / 8}}}}\n'
        '(folder / "results.json").write_text(json.dumps(results))\n')

    def command(config, workdir, overrides):
        return [sys.executable, '-c', script, str(workdir), dict(overrides)['seed']]

    monkeypatch.setattr(sweep, 'command', command)
    return tmp_path


def run_sweep(folder, keep_going):
    runs = sweep.expand(['seed=0,1,2'])
    return sweep.run_sweep('c.py', folder, runs, keep_going)


def test_it_stops_at_a_failure(three_runs, capfd):
    assert run_sweep(three_runs, keep_going=False) == 1
    assert sorted(path.name for path in three_runs.iterdir()) == ['seed=0', 'seed=1']
    assert '2 of 3 run, 1 failed' in capfd.readouterr().out


def test_it_goes_on_if_told_to_and_prints_what_was_reached(three_runs, capfd):
    assert run_sweep(three_runs, keep_going=True) == 1
    out = capfd.readouterr().out
    assert 'seed=0: (rule: exact)  grpo 0.500' in out
    assert 'seed=1: failed (7)' in out
    assert 'seed=2: (rule: exact)  grpo 0.750' in out


def program(*arguments):
    return subprocess.run(
        [sys.executable, sweep.__file__, *arguments], capture_output=True, text=True)


def test_a_dry_run_prints_the_commands_and_runs_nothing(tmp_path):
    done = program('--config', 'c.py', f'--workdir={tmp_path}', '--sweep=seed=0,1', '--dry_run',
                   '--sweep', 'grpo.learner.lr=1e-6')
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split('--config=c.py')[1] for line in lines] == [
        f' --workdir={tmp_path}/seed={seed},grpo.learner.lr=1e-6 --config.seed={seed} '
        '--config.grpo.learner.lr=1e-6' for seed in (0, 1)]
    assert list(tmp_path.iterdir()) == []


def test_a_bad_sweep_ends_with_its_reason():
    done = program('--config=c.py', '--workdir=w', '--sweep=seed')
    assert done.returncode != 0
    assert "--sweep=seed: expected 'field=value,value'" in done.stdout + done.stderr
