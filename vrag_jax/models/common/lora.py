"""Low-rank adapters (LoRA, arXiv 2106.09685) of the decoder's linear layers.

An adapted layer computes `x W + (alpha / rank) (dropout(x) A) B`, with `A` drawn at
random and `B` zero, so that training starts at the base model. Parameters whose path
ends in `lora_a` or `lora_b` are trained, all others are frozen and shared.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vrag_jax.models.common.layers import Linear
from vrag_jax.models.common.parameters import Params, merge
from vrag_jax.models.common.peft import CONFIG_FILE, WEIGHTS_FILE, PeftAdapter
from vrag_jax.models.common.quantization import dequantized
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.distributed import is_main
from vrag_jax.parallel.processes import to_host

TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
ADAPTER = re.compile(r'/lora_[ab]$')

_PEFT_PREFIX = 'base_model.model.'
# Settings under which layers have another rank or scale than `LoraConfig` says.
_OTHER_SCALES = ('use_rslora', 'rank_pattern')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters of the decoder.

    Attributes:
      rank: of the adapters; 0 is none, and every parameter is trained.
      alpha: the adapter's output is multiplied by `alpha / rank`.
      dropout: share of an adapter's inputs that are dropped in updates of SFT; GRPO, which
        compares log-probs with those of the sampler, drops nothing.
      targets: which linear layers have one.
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if self.rank < 0 or not 0 <= self.dropout < 1 or self.alpha <= 0:
            raise ValueError('rank must not be negative, dropout in [0, 1), alpha positive; got '
                             f'{self.rank}, {self.dropout}, {self.alpha}')
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f'targets must be some of {TARGETS}, got {self.targets}')

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return self.alpha / self.rank


def is_adapter(path: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return bool(ADAPTER.search(path))


def drops_out(graphdef: nnx.GraphDef[PolicyModel], params: Params) -> bool:
    """Whether a policy has adapters with dropout."""
    model = merge(graphdef, params)
    return any(isinstance(layer, Linear) and layer.lora_dropout > 0
               for _, layer in nnx.iter_graph(model.adaptable()))


def add_adapters(model: PolicyModel, config: LoraConfig, rngs: nnx.Rngs) -> None:
    """Gives the decoder's stacked layers adapters, float32 whatever the base is.

    Args:
      model: is changed.
      config: which; rank 0 changes nothing.
      rngs: stream `params` draws `A`.
    """
    if not config.rank:
        return
    for path, layer in nnx.iter_graph(model.adaptable()):
        if not isinstance(layer, Linear) or path[-1] not in config.targets:
            continue
        depth, inputs, outputs = layer.kernel.shape
        draw = jax.random.normal(rngs.params(), (depth, inputs, config.rank)) * inputs**-0.5
        layer.lora_a = nnx.Param(draw)
        layer.lora_b = nnx.Param(jnp.zeros((depth, config.rank, outputs)))
        layer.lora_scale, layer.lora_dropout = config.scale, config.dropout


def merged(params: Params, config: LoraConfig) -> dict[str, jax.Array]:
    """Returns the parameters of a model without adapters that computes the same.

    Args:
      params: by path, `[L, ...]`; quantised kernels come back as arrays.
      config: of the adapters.
    """
    return {path: merged_parameter(params, config, path)
            for path in params if not is_adapter(path)}


def merged_parameter(params: Params, config: LoraConfig, path: str) -> jax.Array:
    """Returns one of the parameters that `merged` returns."""
    value = dequantized(params[path])
    layer = path.removesuffix('/kernel')
    if f'{layer}/lora_a' not in params:
        return value
    return _join(value, params[f'{layer}/lora_a'], params[f'{layer}/lora_b'], config.scale)


@jax.jit
def _join(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    change = jnp.einsum('lir,lro->lio', a, b, preferred_element_type=jnp.float32)
    return (kernel.astype(jnp.float32) + change * scale).astype(kernel.dtype)


def save_adapters(directory: Path, params: Params, config: LoraConfig, base: str) -> None:
    """Writes the adapters alone, in the format of PEFT; every process calls it.

    Args:
      directory: is made; `adapter_model.safetensors` and `adapter_config.json`.
      params: by path; other parameters are ignored.
      config: of the adapters.
      base: name or directory of the model that they belong to.
    """
    tensors = {}
    for path, value in params.items():
        if is_adapter(path):
            for layer, matrix in enumerate(to_host(value)):
                tensors[_peft_name(path, layer)] = np.ascontiguousarray(matrix.T)
    if not is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f'{WEIGHTS_FILE}.partial'
    save_file(tensors, partial, metadata={'format': 'pt'})
    partial.replace(directory / WEIGHTS_FILE)
    (directory / CONFIG_FILE).write_text(json.dumps({
        'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base,
        'r': config.rank, 'lora_alpha': config.alpha, 'lora_dropout': config.dropout,
        # A regular expression: the vision tower has layers of the same names.
        'target_modules': rf'.*language_model.*\.({"|".join(config.targets)})',
        'bias': 'none', 'fan_in_fan_out': False, 'inference_mode': True,
    }, indent=1) + '\n')


def load_adapters(
    directory: Path, shapes: Mapping[str, Any], config: LoraConfig
) -> dict[str, np.ndarray]:
    """Reads adapters that `save_adapters`, or PEFT, wrote.

    Args:
      directory: of the adapters.
      shapes: parameters or shapes of the policy, by path.
      config: must agree with how the adapters were trained.

    Returns:
      Float32 arrays of every adapter in `shapes`, by path.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if they were trained otherwise, or a tensor is missing, of another shape or
        unknown; names the file and the tensor.
    """
    adapter = PeftAdapter(directory)
    weights, settings, tensors = adapter.file, directory / CONFIG_FILE, dict(adapter.tensors)
    found = (adapter.settings.get('r'), adapter.settings['lora_alpha'])
    if found != (config.rank, config.alpha):
        raise ValueError(f'{settings}: rank and alpha are {found}, but the config says '
                         f'{(config.rank, config.alpha)}')
    others = [name for name in _OTHER_SCALES if adapter.settings.get(name)]
    if others:
        raise ValueError(f'{settings}: {", ".join(others)}: not supported')
    out = {}
    for path, leaf in shapes.items():
        if not is_adapter(path):
            continue
        layers = []
        for layer in range(leaf.shape[0]):
            name = _peft_name(path, layer)
            tensor = tensors.pop(name, None)
            if tensor is None or tensor.T.shape != leaf.shape[1:]:
                raise ValueError(f'{weights}: tensor {name!r} must have shape '
                                 f'{leaf.shape[:0:-1]}, got '
                                 f'{"none" if tensor is None else tensor.shape}')
            layers.append(tensor.T.astype(np.float32))
        out[path] = np.stack(layers)
    if tensors:
        raise ValueError(f'{weights}: {len(tensors)} tensors do not belong to this policy: '
                         f'{", ".join(sorted(tensors)[:4])}')
    return out


def _peft_name(path: str, layer: int) -> str:
    """Name in PEFT's files, e.g. `...layers.0.self_attn.q_proj.lora_A.weight`."""
    module, _, kind = path.rpartition('/')
    module = module.removeprefix('language_model/layers/').replace('attention', 'self_attn')
    return (f'{_PEFT_PREFIX}model.language_model.layers.{layer}.{module.replace("/", ".")}'
            f'.lora_{kind[-1].upper()}.weight')
