"""LoRA adapters in PEFT's format: their files, and merging them into a model's parameters."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vrag_jax.models.common.hf_layout import WeightLayout

WEIGHTS_FILE = 'adapter_model.safetensors'
CONFIG_FILE = 'adapter_config.json'

# Settings under which a layer would compute something else than W + scale B A.
_REFUSED = ('use_dora', 'fan_in_fan_out', 'modules_to_save', 'alpha_pattern', 'lora_bias')

# Ways to begin training that change the base's weights as well, which the adapter then is of.
_CHANGED_BASES = ('pissa', 'olora', 'loftq', 'corda', 'lora_ga')


class PeftAdapter:
    """The adapter of a directory.

    Args:
      directory: with `adapter_config.json` and `adapter_model.safetensors`.
      layout: of the base's checkpoint; by default tensors keep the names of the file.

    Attributes:
      file: of the tensors.
      settings: of `adapter_config.json`.
      tensors: by their published names.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file cannot be read, or the settings are not supported.
    """

    def __init__(self, directory: Path,
                 layout: WeightLayout = WeightLayout(str)):  # noqa: B008 (immutable)
        self.file = _require_weights(directory)
        self.settings = read_settings(directory)
        try:
            tensors = load_file(self.file)
        except SafetensorError as error:
            raise ValueError(f'{self.file}: truncated or not safetensors: {error}') from error
        self._layout = layout
        self.tensors = {layout.published_name(name): value for name, value in tensors.items()}
        self._used: set[str] = set()

    def merge(self, path: str, kernel: jax.Array) -> jax.Array:
        """Returns a parameter with its adapter merged, if it has one; in its dtype and place.

        Whatever layers there are tensors for are adapted; a stacked kernel's other layers stay as
        they are.

        Raises:
          ValueError: if an adapter's shape does not fit.
        """
        if not path.endswith('/kernel'):
            return kernel
        stacked = self._layout.layers(path, kernel.shape)
        changes = [self._change(name.removesuffix('.weight'), kernel.shape[-2:])
                   for name, _ in stacked]
        if all(change is None for change in changes):
            return kernel
        zero = np.zeros(kernel.shape[-2:], np.float32)
        change = np.stack([zero if c is None else c for c in changes]).reshape(kernel.shape)
        return _add(kernel, jax.device_put(change, kernel.sharding))

    def expect_all_used(self) -> None:
        """Raises a `ValueError` if a tensor of the adapter belongs to no kernel merged so far."""
        unknown = sorted(self.tensors.keys() - self._used)
        if unknown:
            raise ValueError(f'{self.file}: {len(unknown)} tensors do not belong to this model: '
                             f'{", ".join(unknown[:4])}')

    def _change(self, layer: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """What is added to a layer's kernel, `[inputs, outputs]`; None without an adapter."""
        names = f'{layer}.lora_A.weight', f'{layer}.lora_B.weight'
        a, b = (self.tensors.get(name) for name in names)
        if a is None or b is None:
            return None
        if (a.shape[1], b.shape[0]) != shape or a.shape[0] != b.shape[1]:
            raise ValueError(f'{self.file}: {names[0]!r} {a.shape} and {names[1]!r} {b.shape} do '
                             f'not fit a layer of {shape[0]} inputs and {shape[1]} outputs')
        self._used.update(names)
        rank = a.shape[0]
        divisor = math.sqrt(rank) if self.settings.get('use_rslora') else rank
        scale = self.settings['lora_alpha'] / divisor
        return (b.astype(np.float32) @ a.astype(np.float32)).T * scale


def read_settings(directory: Path) -> Mapping[str, Any]:
    """Reads and checks an adapter's `adapter_config.json`.

    Raises:
      FileNotFoundError: if it is missing.
      ValueError: if it is not of a LoRA that can be merged as `W + scale B A`.
    """
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f'{file}: no such file')
    try:
        settings = json.loads(file.read_text('utf-8'))
    except ValueError as error:
        raise ValueError(f'{file}: not JSON: {error}') from error
    if settings.get('peft_type') != 'LORA' or 'lora_alpha' not in settings:
        raise ValueError(f"{file}: peft_type must be 'LORA', got {settings.get('peft_type')!r}")
    for name in _REFUSED:
        if settings.get(name):
            raise ValueError(f'{file}: {name} = {settings[name]!r} is not supported')
    start = str(settings.get('init_lora_weights')).lower()
    if start.startswith(_CHANGED_BASES):
        raise ValueError(f'{file}: init_lora_weights = {start!r} is not supported: the adapter is '
                         'not of the published base')
    if settings.get('bias', 'none') != 'none':
        raise ValueError(f"{file}: bias must be 'none', got {settings['bias']!r}")
    return settings


def _require_weights(directory: Path) -> Path:
    """Returns the file of an adapter's tensors.

    Raises:
      FileNotFoundError: if it is missing; says what to do where there are pickled ones.
    """
    file, pickled = directory / WEIGHTS_FILE, directory / 'adapter_model.bin'
    if file.is_file():
        return file
    if not pickled.is_file():
        raise FileNotFoundError(f'{file}: no such file')
    raise FileNotFoundError(
        f'{file}: no such file, but {pickled.name}, which is not read; convert it where torch is: '
        'python -c "import torch, safetensors.torch as st; st.save_file(torch.load('
        f"{str(pickled)!r}, map_location='cpu', weights_only=True), {str(file)!r})\"")


@jax.jit
def _add(kernel: jax.Array, change: jax.Array) -> jax.Array:
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
