"""Memory of writing, reading and saving checkpoints: the weights and two shards at most."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARD_BYTES = 200 * 10**6

# A process of its own: nothing but the checkpoint comes and goes in its memory. The model
# has 574 MB of weights, no parameter above 59 MB; a second copy of it, or the pages of all
# its mapped files, would be above the bound.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from flax import nnx
from benchmarks.memory import Peak
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.config import ModelConfig, TextConfig
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.config import Qwen25VisionConfig
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.models.common.axes import parameter_shardings

folder, limit = sys.argv[1], int(sys.argv[2])
config = ModelConfig(
    Qwen25VisionConfig(depth=16, hidden_size=512, intermediate_size=1536, num_heads=8,
                 out_hidden_size=512, fullatt_block_indexes=(7, 15)),
    TextConfig(vocab_size=28000, hidden_size=512, intermediate_size=1024,
               num_hidden_layers=28, num_attention_heads=8, num_key_value_heads=2,
               mrope_section=(8, 12, 12)))

def shapes_of(config):
    return flat_params(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))[1]

def number(shapes, path):
    return list(shapes).index(path) + 0.5

def load(config, path):
    shardings = parameter_shardings(shapes_of(config), make_mesh({'fsdp': -1}))
    return jax.block_until_ready(hf_checkpoint.load(path, config, shardings=shardings))

def three(config, name):
    shapes = shapes_of(config)
    with Peak() as write:
        hf_checkpoint.save_params(
            lambda path: jnp.full(shapes[path].shape, number(shapes, path), shapes[path].dtype),
            shapes, config, f'{folder}/{name}', limit)
    with Peak() as read:
        model = load(config, f'{folder}/{name}')
    params = flat_params(model)[1]
    held = sum(s.data.nbytes for value in params.values() for s in value.addressable_shards)
    with Peak() as save:
        hf_checkpoint.save(model, f'{folder}/{name}-again', limit)
    with Peak() as cast:
        hf_checkpoint.save_params(params.__getitem__, params, config, f'{folder}/{name}-half',
                                  limit, dtype='bfloat16')
    equal = all(bool((value == number(shapes, path)).all()) for path, value in params.items())
    grown = {k: p.rss - p.before['rss'] for k, p in
             (('write', write), ('read', read), ('save', save), ('cast', cast))}
    return {'grown': grown, 'held': held, 'equal': equal}

three(preset('tiny', vocab_size=1024), 'warm-up')  # What JAX itself needs, once.
print(json.dumps(three(config, 'measured')))
"""


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs the /proc of Linux')
@pytest.mark.parametrize('devices', [1, 4])
def test_memory_stays_under_the_weights_and_two_shards(tmp_path, devices):
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': '',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(tmp_path), str(SHARD_BYTES)], cwd=ROOT,
        env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    shards = sorted((tmp_path / 'measured').glob('*.safetensors'))
    largest = max(file.stat().st_size for file in shards)
    assert found['equal']
    assert len(shards) >= 3
    assert found['held'] > 570 * 10**6 > 2 * largest  # Else the bounds below would say nothing.
    assert found['grown']['write'] < 2 * largest
    assert found['grown']['read'] < found['held'] + 2 * largest
    assert found['grown']['save'] < 2 * largest
    assert found['grown']['cast'] < 2 * largest
    for file in shards:
        assert (tmp_path / 'measured-again' / file.name).read_bytes() == file.read_bytes()
