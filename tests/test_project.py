"""The project's own rules: what is declared, what is imported, what make does."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted([*ROOT.glob('vrag_jax/**/*.py'), *ROOT.glob('configs/*.py'),
                  *ROOT.glob('launch/*.py')])
BENCHMARKS = sorted(ROOT.glob('benchmarks/*.py'))
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())

# Distributions whose modules have other names.
MODULE_OF = {'pillow': 'PIL', 'scikit-learn': 'sklearn', 'absl-py': 'absl',
             'ml-collections': 'ml_collections', 'tensorflow-datasets': 'tensorflow_datasets',
             'orbax-checkpoint': 'orbax', 'prometheus-client': 'prometheus_client'}
# Not imported by name: the engine of OCR, the compiler for TPUs, what runs or checks the project.
NOT_IMPORTED = {'filelock', 'hypothesis', 'libtpu', 'mypy', 'onnxruntime', 'pytest', 'pytest-xdist',
                'ruff'}


def requirements(name):
    """Lines of a requirements file without comments."""
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def distribution(requirement):
    return re.match(r'[\w-]+', requirement)[0]


def imported_modules(path):
    """Top-level names of absolute imports anywhere in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition('.')[0])
    return names


def third_party():
    """Modules that the package imports from elsewhere, each with one importing file."""
    own = {'vrag_jax', 'configs', 'launch'} | set(sys.stdlib_module_names)
    return {name: path.relative_to(ROOT) for path in MODULES
            for name in imported_modules(path) - own}


def declared():
    """Every distribution that is declared, from requirements and extras."""
    extras = PYPROJECT['project']['optional-dependencies'].values()
    return {distribution(r) for r in [*requirements('requirements.txt'), *sum(extras, [])]}


def test_every_import_is_declared():
    modules = {MODULE_OF.get(name, name) for name in declared()}
    missing = {name: str(path) for name, path in third_party().items() if name not in modules}
    assert missing == {}


def test_every_requirement_is_imported():
    unused = {name for name in declared() - NOT_IMPORTED
              if MODULE_OF.get(name, name) not in third_party()}
    assert unused == set()


def test_torch_and_tensorflow_are_never_imported():
    assert not {'torch', 'torchvision', 'tensorflow'} & set(third_party())


def test_requirements_admit_newer_versions():
    extras = PYPROJECT['project']['optional-dependencies'].values()
    for requirement in [*requirements('requirements.txt'), *sum(extras, [])]:
        assert re.fullmatch(r'[\w-]+(\[\w+\])?>=[\d.]+(; .+)?', requirement), requirement


# Where the first command of the README has to pass.
MACHINES = [{'python_version': python, 'python_full_version': f'{python}.0',
             'sys_platform': system, 'platform_machine': machine}
            for python in ('3.11', '3.12', '3.13', '3.14')
            for system, machine in (('linux', 'x86_64'), ('linux', 'aarch64'),
                                    ('darwin', 'arm64'))]


def applies(requirement, machine):
    return requirement.marker is None or requirement.marker.evaluate({**machine, 'extra': ''})


@pytest.mark.parametrize('machine', MACHINES, ids=lambda machine: '-'.join(
    (machine['python_version'], machine['sys_platform'], machine['platform_machine'])))
def test_the_lock_names_one_version_of_all_that_is_declared(machine):
    lines = [line for line in requirements('requirements.lock')]
    locked = {}
    for requirement in map(Requirement, lines):
        if applies(requirement, machine):
            assert re.fullmatch(r'==[\w.]+', str(requirement.specifier)), requirement
            assert requirement.name not in locked, requirement
            locked[requirement.name] = str(requirement.specifier).removeprefix('==')
    extras = PYPROJECT['project']['optional-dependencies'].values()
    for requirement in map(Requirement, [*requirements('requirements.txt'), *sum(extras, []),
                                         *requirements('requirements-build.txt')]):
        if applies(requirement, machine):
            name = requirement.name.lower().replace('_', '-')
            assert requirement.specifier.contains(locked[name]), requirement
    assert ('scann' in locked) == (
        machine['sys_platform'] == 'linux' and machine['python_version'] != '3.14')


def test_the_lock_names_releases_and_no_places_and_nothing_of_torch():
    lines = requirements('requirements.lock')
    assert not [line for line in lines if '://' in line or line.startswith('-') or '@' in line]
    assert not {'torch', 'torchvision', 'tensorflow'} & {distribution(line) for line in lines}


@pytest.mark.parametrize('accelerator', ['cuda', 'tpu'])
def test_accelerators_need_what_the_cpu_needs_and_their_jax(accelerator):
    extra = f'jax[{accelerator}]'
    floor = next(r for r in requirements('requirements.txt') if distribution(r) == 'jax')
    wanted = floor.replace('jax', extra)
    assert requirements(f'requirements-{accelerator}.txt') == ['-r requirements.txt', wanted]
    assert PYPROJECT['project']['optional-dependencies'][accelerator] == [wanted]


@pytest.mark.parametrize('path', MODULES + BENCHMARKS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_stays_readable(path):
    text = path.read_text(encoding='utf-8')
    assert ast.get_docstring(ast.parse(text)).splitlines()[0].endswith(('.', '?'))
    assert len(text.splitlines()) <= 400


def make(*arguments):
    """Runs make as from a fresh shell, also where these tests are run by make."""
    given = ('MAKEFLAGS', 'MAKEOVERRIDES', 'CONFIG', 'WORKDIR', 'ARGS', 'LATEST', 'JOBS', 'PYTHON',
             'ACCELERATOR')
    environment = {name: value for name, value in os.environ.items() if name not in given}
    return subprocess.run(
        ['make', *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize('accelerator,file', [
    ('cpu', 'requirements.txt'), ('cuda', 'requirements-cuda.txt'),
    ('tpu', 'requirements-tpu.txt')])
def test_make_run_installs_what_fits_and_runs_the_tiny_config(tmp_path, accelerator, file):
    plan = make('-n', 'run', f'ACCELERATOR={accelerator}', f'VENV={tmp_path}/venv').stdout
    assert f'-r {file}\n' in plan
    assert '-m vrag_jax.main --config=configs/tiny.py --workdir=runs/tiny' in plan


def test_make_installs_what_the_lock_names_unless_told_otherwise():
    for target in ('run', 'test', 'check', 'install'):
        plan = make('-n', '-W', 'requirements.lock', target, 'ACCELERATOR=cpu').stdout
        installs = [line for line in plan.splitlines() if 'pip install' in line]
        assert installs and all('--constraint requirements.lock' in line for line in installs)
        assert '.venv-latest' not in plan
        plan = make('-n', '-W', 'requirements.lock', target, 'ACCELERATOR=cpu', 'LATEST=1').stdout
        installs = [line for line in plan.splitlines() if 'pip install' in line]
        assert installs and all('--upgrade ' in line and 'requirements.lock' not in line
                                for line in installs)
        assert '.venv/' not in plan  # Two environments, of which neither changes the other.


def test_make_does_not_install_twice(tmp_path):
    venv = tmp_path / 'venv'
    (venv / 'bin').mkdir(parents=True)
    for name in ('bin/python', '.installed-cpu', '.installed-cpu-dev'):
        (venv / name).touch()
    for target in ('run', 'test', 'check'):
        plan = make('-n', target, 'ACCELERATOR=cpu', f'VENV={venv}').stdout
        assert 'pip install' not in plan


def test_make_test_leaves_the_slow_tests_out_and_lint_to_make_check(tmp_path):
    plan = make('-n', 'test', 'ACCELERATOR=cpu', f'VENV={tmp_path}/venv').stdout
    for part in ("'.[dev,ocr,quantization,serve,tpu-aot]'",
                 "pytest -m 'not slow' -n 2"):
        assert part in plan
    assert 'bin/ruff' not in plan and 'bin/mypy' not in plan


def test_make_check_lints_and_checks_types(tmp_path):
    plan = make('-n', 'check', 'ACCELERATOR=cpu', f'VENV={tmp_path}/venv').stdout
    for part in ("'.[dev,ocr,quantization,serve,tpu-aot]'", 'ruff check', 'bin/mypy'):
        assert part in plan
    assert '-m pytest' not in plan


def test_an_old_python_is_refused_with_advice(tmp_path):
    old = tmp_path / 'python3'
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    done = make('install', f'PYTHON={old}', 'ACCELERATOR=cpu', f'VENV={tmp_path}/venv')
    assert done.returncode != 0
    assert 'needs Python 3.11 or newer' in done.stdout and 'Python 3.9.2' in done.stdout
    assert 'PYTHON=python3.12' in done.stdout


def test_continuous_integration_checks_and_tests():
    script = ROOT / '.ci' / 'run'
    assert script.stat().st_mode & 0o100
    assert script.read_text().endswith('make check\nmake test\nmake test-slow\n')
