"""Shell scripts: which accelerator a machine has, and runs that are started again."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / 'launch'


def executable(path, text):
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    """A machine with nothing but a CPU: folder `bin` comes first on its path."""
    (tmp_path / 'bin').mkdir()
    executable(tmp_path / 'bin' / 'nvidia-smi', 'exit 9\n')
    return tmp_path


def accelerator(machine):
    done = subprocess.run(
        ['sh', LAUNCH / 'accelerator.sh'], capture_output=True, text=True, check=True,
        env={'PATH': f'{machine / "bin"}:{os.environ["PATH"]}', 'SYSTEM_ROOT': str(machine)})
    return done.stdout.strip()


def add_files(machine, *names, text=''):
    for name in names:
        path = machine / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_cpu_where_there_is_nothing_else(machine):
    assert accelerator(machine) == 'cpu'


def test_cuda_where_the_driver_lists_a_gpu(machine):
    executable(machine / 'bin' / 'nvidia-smi', 'echo "GPU 0: some card"\n')
    assert accelerator(machine) == 'cuda'


def test_a_driver_without_a_gpu_is_no_accelerator(machine):
    executable(machine / 'bin' / 'nvidia-smi', 'echo "No devices were found"\n')
    assert accelerator(machine) == 'cpu'


def test_tpu_by_its_device_file(machine):
    add_files(machine, 'dev/accel0')
    assert accelerator(machine) == 'tpu'


@pytest.mark.parametrize('vendor,expected', [('0x1ae0\n', 'tpu'), ('0x8086\n', 'cpu')])
def test_tpu_behind_vfio_by_its_vendor(machine, vendor, expected):
    add_files(machine, 'dev/vfio/0')
    add_files(machine, 'sys/bus/pci/devices/0000:00:04.0/vendor', text=vendor)
    assert accelerator(machine) == expected


@pytest.fixture
def flaky(tmp_path):
    """Stands in for Python: notes its arguments, fails the first two times."""
    executable(tmp_path / 'python', (
        f'echo "$@" >> {tmp_path}/calls\n'
        f'echo working; [ $(wc -l < {tmp_path}/calls) -gt 2 ]\n'))
    return tmp_path


def local(folder, restarts):
    return subprocess.run(
        [LAUNCH / 'local.sh', 'configs/tiny.py', folder / 'run', '--config.seed=1'],
        capture_output=True, text=True,
        env={**os.environ, 'PYTHON': str(folder / 'python'), 'RESTARTS': str(restarts)})


def test_a_run_is_started_again_until_it_ends_well(flaky):
    assert local(flaky, restarts=5).returncode == 0
    line = f'-m vrag_jax.main --config=configs/tiny.py --workdir={flaky}/run --config.seed=1'
    assert (flaky / 'calls').read_text().splitlines() == [line] * 3
    assert (flaky / 'run' / 'log.txt').read_text().count('working') == 3


def test_no_more_restarts_than_asked_for(flaky):
    assert local(flaky, restarts=1).returncode == 1
    assert len((flaky / 'calls').read_text().splitlines()) == 2


def test_without_arguments_it_says_how_it_is_used():
    done = subprocess.run([LAUNCH / 'local.sh'], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'launch/local.sh CONFIG WORKDIR' in done.stderr
