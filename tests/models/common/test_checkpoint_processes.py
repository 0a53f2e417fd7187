"""Checkpoints of two processes: each reads its part, one writes, the files are those of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.golden_cases import CASES, GOLDENS, weights

ROOT = Path(__file__).resolve().parents[3]
CASE = CASES[1]

PROGRAM = """
import json, sys
import jax
import numpy as np

jax.config.update('jax_cpu_collectives_implementation', 'gloo')
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f'127.0.0.1:{port}', num_processes=2, process_id=process)

from flax import nnx
from vrag_jax.models.common import hf_checkpoint, hf_layout
from vrag_jax.models.families import read_config
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.models.common.axes import parameter_shardings

read_slice, read = hf_layout.read_slice, {}
def counted(path, tensor, index, out):
    read[path] = read.get(path, 0) + out.size
    read_slice(path, tensor, index, out)
hf_layout.read_slice = counted

def shards_of(params):
    return {path: [(s.index, np.asarray(s.data)) for s in value.addressable_shards]
            for path, value in params.items()}

config = read_config(f'{folder}/one')
abstract = flat_params(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))[1]
shardings = parameter_shardings(abstract, make_mesh({'fsdp': 2, 'tensor': 2}))
model = hf_checkpoint.load(f'{folder}/one', shardings=shardings)
first, once = flat_params(model)[1], dict(read)
hf_checkpoint.save(model, f'{folder}/two', max_shard_bytes=40_000)
again = flat_params(hf_checkpoint.load(f'{folder}/two', shardings=shardings))[1]
same = all(a == b and np.array_equal(x, y) for path, held in shards_of(first).items()
           for (a, x), (b, y) in zip(held, shards_of(again)[path], strict=True))
try:
    hf_checkpoint.save(model, f'{folder}/two')
    refused = False
except FileExistsError:
    refused = True
print(json.dumps({
    'devices': [jax.local_device_count(), jax.device_count()], 'same': same, 'refused': refused,
    'read': once, 'sizes': {path: leaf.size for path, leaf in abstract.items()},
    'split': [path for path, s in shardings.items() if not s.is_fully_replicated],
    'in_part': sum(not value.is_fully_addressable for value in first.values())}))
"""


@pytest.fixture(scope='module')
def tensors():
    with np.load(GOLDENS / f'{CASE.name}.npz') as golden:
        return weights(CASE, json.loads(str(golden['shapes'])))


@pytest.fixture(scope='module')
def run(tmp_path_factory, tensors):
    """What both processes say, and the folder of checkpoints `one` (given) and `two` (saved)."""
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'one').mkdir()
    (folder / 'one' / 'config.json').write_text(json.dumps(CASE.hf_config()))
    save_file(tensors, folder / 'one' / 'model.safetensors')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    processes = [
        subprocess.Popen([sys.executable, '-c', PROGRAM, str(process), str(port), str(folder)],
                         cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
        for process in range(2)]
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return folder, [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_a_process_reads_only_what_its_devices_hold(run):
    for process in run[1]:
        assert process['devices'] == [2, 4]
        assert process['in_part'] == len(process['sizes'])
        assert len(process['split']) > 10
        # Two of four devices hold half of what is split four ways, and all of what is split
        # between the two of them only.
        for path, size in process['sizes'].items():
            assert process['read'][path] in ((size // 2, size) if path in process['split']
                                             else (size,)), path
    kernel = 'language_model/layers/mlp/gate_proj/kernel'
    assert [process['read'][kernel] * 2 for process in run[1]] == [
        process['sizes'][kernel] for process in run[1]]


def test_what_two_processes_save_is_what_one_had_written(run, tensors):
    files = sorted((run[0] / 'two').glob('*.safetensors'))
    assert len(files) > 1
    saved = {name: value for file in files for name, value in load_file(file).items()}
    assert saved.keys() == tensors.keys()
    for name, want in tensors.items():
        np.testing.assert_array_equal(saved[name], want, err_msg=name)
    assert not list(run[0].glob('*.partial'))


def test_what_two_processes_read_again_is_the_same(run):
    assert all(process['same'] for process in run[1])


def test_no_process_overwrites_a_checkpoint(run):
    assert all(process['refused'] for process in run[1])
