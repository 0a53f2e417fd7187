"""On CPUs alone a run allocates as is best there and says nothing of TPUs; else nothing changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vrag_jax import hardware

ROOT = Path(__file__).resolve().parents[1]
GOOGLE, OTHER = '0x1ae0\n', '0x8086\n'

# Takes 64 MiB forty times, writes to it and gives it back: page faults tell whether it was kept.
ALLOCATE = """
import ctypes, json, os, resource, sys
from vrag_jax import hardware
hardware.settle()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(ctypes.c_void_p(block))
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    touch()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps({'pid': os.getpid(), 'argv': sys.argv[1:], 'faults': faults, **{
    name: os.environ.get(name) for name in ('GLIBC_TUNABLES', 'JAX_PLATFORMS', 'OWN')}}))
"""


def environment(**more):
    """As a user's, who has set none of what matters here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith('TPU_')
            and name not in ('GLIBC_TUNABLES', 'JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'XLA_FLAGS')}
    return {**kept, 'PYTHONPATH': str(ROOT), **more}


def allocated(*arguments, **more):
    process = subprocess.Popen([sys.executable, '-c', ALLOCATE, *arguments], cwd=ROOT, text=True,
                               env=environment(**more), stdout=subprocess.PIPE)
    told = json.loads(process.communicate()[0])
    assert told.pop('pid') == process.pid  # Who started it, watches it.
    return told


glibc_on_cpus = pytest.mark.skipif(
    not hardware.has_glibc() or not hardware.only_cpus(environment()),
    reason='not glibc, or not CPUs alone')


@glibc_on_cpus
def test_on_a_cpu_freed_memory_is_kept_and_the_command_stays_what_it_was():
    told = allocated('--flag=a b', '', '-x', OWN='1')
    assert told.pop('faults') < 1000
    assert told == {'argv': ['--flag=a b', '', '-x'], 'GLIBC_TUNABLES': hardware.TUNABLES,
                    'JAX_PLATFORMS': 'cpu', 'OWN': '1'}


@glibc_on_cpus
def test_what_the_environment_says_stays():
    told = allocated(GLIBC_TUNABLES='')
    assert told['GLIBC_TUNABLES'] == ''
    # Given back each time, and asked for anew: in pages of 4 KiB, or at least some huge ones.
    assert told['faults'] > 1000
    told = allocated(JAX_PLATFORMS='cuda,cpu')
    assert (told['GLIBC_TUNABLES'], told['JAX_PLATFORMS']) == (None, 'cuda,cpu')


@pytest.mark.parametrize('variables, only', [
    ({'JAX_PLATFORMS': 'cpu'}, True), ({'JAX_PLATFORMS': 'tpu,cpu'}, False),
    ({'JAX_PLATFORMS': 'cuda'}, False), ({'JAX_PLATFORM_NAME': 'cpu'}, True),
    ({'JAX_PLATFORMS': '', 'JAX_BACKEND_TARGET': 'grpc://x'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'host'}, False),
    ({'TPU_ML_PLATFORM': 'JAX', 'TPU_LIBRARY_PATH': 'libtpu.so'}, True)])
def test_the_environment_says_what_jax_will_find(variables, only, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, 'has_plugin', lambda: False)
    assert hardware.only_cpus(variables, tmp_path) is only


@pytest.mark.parametrize('files, plugin, only', [
    ({}, False, True), ({}, True, False), ({'dev/accel0': ''}, False, False),
    ({'dev/vfio/0': '', 'sys/bus/pci/devices/1/vendor': GOOGLE}, False, False),
    ({'dev/vfio/0': '', 'sys/bus/pci/devices/1/vendor': OTHER}, False, True),
    ({'dev/vfio/vfio': '', 'sys/bus/pci/devices/1/vendor': GOOGLE}, False, True)],
    ids=['none', 'plugin', 'TPU', 'TPU by VFIO', 'VFIO of another', 'network card of Google'])
def test_what_may_be_an_accelerator_is_left_alone(files, plugin, only, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, 'has_plugin', lambda: plugin)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.only_cpus({}, tmp_path) is only


def test_a_package_of_another_platform_is_seen(tmp_path):
    (tmp_path / 'jax_plugins' / 'mine').mkdir(parents=True)
    code = 'from vrag_jax import hardware; print(hardware.only_cpus({}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          env=environment(PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}'))
    assert done.stdout == 'False\n', done.stderr


@glibc_on_cpus
def test_a_run_on_a_cpu_warns_of_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'vrag_jax.main', '--config=configs/tiny.py', '--config.task=plan',
         f'--workdir={tmp_path}/run'], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout
