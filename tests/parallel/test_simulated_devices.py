"""Eight simulated devices compute what one does, each with its part of the arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs in a process of its own: the number of devices is fixed when jax starts.
PROGRAM = """
import json, jax, jax.numpy as jnp, numpy as np
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.sharding import batch_sharding
from vrag_jax.models.common.axes import parameter_shardings

def loss(params, batch):
    def layer(x, p):
        hidden = jax.nn.silu(x @ p['layers/up_proj/kernel'])
        return x + hidden @ p['layers/down_proj/kernel'], None
    embedding = params['language_model/embed_tokens/embedding']
    layers = {k: v for k, v in params.items() if k.startswith('layers')}
    x, _ = jax.lax.scan(layer, embedding[batch['tokens']], layers)
    return jnp.mean((x @ embedding.T) ** 2)

rng = np.random.default_rng(0)
params = {
    'layers/up_proj/kernel': rng.normal(size=(3, 16, 32)).astype(np.float32) / 4,
    'layers/down_proj/kernel': rng.normal(size=(3, 32, 16)).astype(np.float32) / 4,
    'language_model/embed_tokens/embedding': rng.normal(size=(40, 16)).astype(np.float32),
}
batch = {'tokens': rng.integers(0, 40, (8, 5)).astype(np.int32)}

def run(mesh):
    p = jax.device_put(params, parameter_shardings(params, mesh))
    b = jax.device_put(batch, batch_sharding(mesh, batch))
    value, grads = jax.jit(jax.value_and_grad(loss))(p, b)
    return p, b, float(value), jax.device_get(grads)

p, b, value, grads = run(make_mesh({'data': 2, 'fsdp': -1, 'tensor': 2}))
_, _, value_1, grads_1 = run(make_mesh({}, devices=jax.devices()[:1]))
shard = lambda x: list(x.addressable_shards[0].data.shape)
print(json.dumps({
    'devices': jax.device_count(),
    'up_proj': shard(p['layers/up_proj/kernel']),
    'down_proj': shard(p['layers/down_proj/kernel']),
    'embedding': shard(p['language_model/embed_tokens/embedding']),
    'tokens': shard(b['tokens']),
    'losses': [value, value_1],
    'gradient_error': max(
        float(np.abs(grads[k] - grads_1[k]).max() / np.abs(grads_1[k]).max()) for k in grads),
}))
"""


@pytest.fixture(scope='module')
def result() -> dict:
    environment = os.environ | {
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-c', PROGRAM], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_device_holds_its_part(result):
    # data 2, fsdp 2, tensor 2.
    assert result['devices'] == 8
    assert result['up_proj'] == [3, 16 // 2, 32 // 2]
    assert result['down_proj'] == [3, 32 // 2, 16 // 2]
    assert result['embedding'] == [40 // 2, 16 // 2]
    assert result['tokens'] == [8 // 4, 5]


def test_loss_and_gradients_are_those_of_one_device(result):
    eight, one = result['losses']
    assert eight == pytest.approx(one, rel=1e-5)
    assert result['gradient_error'] < 1e-5
