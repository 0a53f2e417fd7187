"""HF checkpoints in and out, one tensor at a time."""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vrag_jax.models.config import ModelConfig
from vrag_jax.models.parameters import Params, flat_params, merge
from vrag_jax.models.qwen2_5_vl import Qwen2_5_VL

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'

# Pieces of a parameter's path and of its tensors' names; `{}` is the layer.
_NAMES = (
    (r'^language_model/layers/attention/', 'model.layers.{}.self_attn.'),
    (r'^language_model/layers/', 'model.layers.{}.'),
    (r'^language_model/', 'model.'),
    (r'^visual/patch_embed/', 'visual.patch_embed.proj.'),
    (r'^visual/blocks/attention/', 'visual.blocks.{}.attn.'),
    (r'^visual/blocks/', 'visual.blocks.{}.'),
    (r'^visual/merger/fc1/', 'visual.merger.mlp.0.'),
    (r'^visual/merger/fc2/', 'visual.merger.mlp.2.'),
    (r'(kernel|scale|embedding)$', 'weight'),
    (r'/', '.'),
)
# What transformers 5 calls the same things.
_NEW_LAYOUT = (('model.language_model.', 'model.'), ('model.visual.', 'visual.'))
_NOT_PARAMETERS = re.compile(r'rotary_(emb|pos_emb)\.inv_freq$')


def tensor_name(path: str) -> str:
    """Returns the tensor's name in a published checkpoint, `{}` for the layer."""
    for pattern, replacement in _NAMES:
        path = re.sub(pattern, replacement, path)
    return path


def load(
    path: Path | str,
    config: ModelConfig | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: str = 'none',
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    convert: Callable[[str, jax.Array], Any] = lambda path, value: value,
) -> Qwen2_5_VL:
    """Loads a checkpoint directory straight into the wanted dtype and shardings.

    Only the slices that a device needs are read, parameter by parameter, so the
    host never holds more than one parameter.

    Args:
      path: directory with `config.json` and `model.safetensors`, or shards and
        `model.safetensors.index.json`; either naming of the tensors, the
        published one (`model.layers…`, `visual…`) or that of transformers 5
        (`model.language_model.layers…`, `model.visual…`).
      config: sizes; None reads them from the directory.
      dtype: of the computation.
      param_dtype: of the parameters.
      remat: see `Qwen2_5_VL`.
      shardings: of parameters by path; None or a missing path puts the parameter
        on the default device.
      convert: `(path, parameter) -> what is kept of it`, once each is on the devices,
        e.g. to quantise it.

    Returns:
      The model.

    Raises:
      FileNotFoundError: if the directory, a shard or the index is missing.
      ValueError: if a file is truncated, or a tensor is missing, of another
        shape, or unknown; names the file and the tensor.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f'{path}: no such checkpoint directory')
    config = config or ModelConfig.from_hf_file(path)
    abstract = nnx.eval_shape(lambda: Qwen2_5_VL(
        config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, remat=remat))
    graphdef, shapes = flat_params(abstract)
    tensors = _Tensors(path)
    tensors.expect(_expected_shapes(shapes, config), tied=config.text.tie_word_embeddings)
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return merge(graphdef, {
        name: convert(name, _read_parameter(
            tensors, name, leaf, (shardings or {}).get(name, default), config))
        for name, leaf in shapes.items()
    })


def save(model: Qwen2_5_VL, path: Path | str, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes a directory that `Qwen2_5_VLForConditionalGeneration` loads.

    It appears under its name only when it is complete. The host holds one shard
    at a time.

    Args:
      model: whose parameters are all addressable from this process.
      path: directory to make.
      max_shard_bytes: most bytes of tensors in a file, unless one is larger.

    Raises:
      FileExistsError: if `path` exists and is not an empty directory.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f'{path} exists already; a checkpoint needs a new directory')
    _, params = flat_params(model)
    shards = _plan_shards(params, max_shard_bytes)
    partial = path.with_name(path.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)  # Left by a run that was killed.
    partial.mkdir(parents=True)
    tensors = hf_tensors(params, model.config)
    weight_map: dict[str, str] = {}
    for number, count in enumerate(shards, start=1):
        file = SINGLE_FILE
        if len(shards) > 1:
            file = f'model-{number:05}-of-{len(shards):05}.safetensors'
        held = dict(itertools.islice(tensors, count))
        weight_map |= dict.fromkeys(held, file)
        # transformers refuses files whose metadata does not name a framework.
        save_file(held, partial / file, metadata={'format': 'pt'})
    if len(shards) > 1:
        size = sum(value.nbytes for value in params.values())
        index = {'metadata': {'total_size': size}, 'weight_map': weight_map}
        (partial / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))
    dtype = str(params['language_model/norm/scale'].dtype)
    hf_config = {**model.config.to_hf(), 'torch_dtype': dtype}
    (partial / 'config.json').write_text(json.dumps(hf_config, indent=2))
    partial.replace(path)


def hf_tensors(params: Params, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a checkpoint by their published names, one at a time.

    Args:
      params: parameters, or anything of their shapes such as gradients, by path.
      config: sizes.
    """
    for key, value in params.items():
        for name, layer in _layers(key, value.shape):
            array = np.asarray(value if layer is None else value[layer])
            shape = _hf_shape(key, array.shape, config)
            if _is_kernel(key):
                transposed = np.empty(array.shape[::-1], array.dtype)
                _transpose(array, transposed)
                array = transposed
            # Strides are not stored: the bytes must be in the order of the shape.
            yield name, np.ascontiguousarray(array).reshape(shape)


class _Tensors:
    """The tensors of a checkpoint directory by their published names."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._files: dict[Path, Any] = {}
        self._place = {_published(name): (file, name) for file, name in self._names()}

    def _names(self) -> Iterator[tuple[Path, str]]:
        index, single = self.directory / INDEX_FILE, self.directory / SINGLE_FILE
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())['weight_map']
            except (ValueError, KeyError) as error:
                raise ValueError(f'{index}: not an index of safetensors files: {error}') from error
            for name, file in weight_map.items():
                yield self.directory / file, name
        elif single.is_file():
            for name in self._open(single).keys():
                yield single, name
        else:
            raise FileNotFoundError(f'{self.directory}: neither {SINGLE_FILE} nor {INDEX_FILE}')

    def _open(self, file: Path) -> Any:
        if file not in self._files:
            if not file.is_file():
                raise FileNotFoundError(f'{file}: no such file, but {INDEX_FILE} names it')
            try:
                self._files[file] = safe_open(file, 'numpy')
            except SafetensorError as error:
                raise ValueError(f'{file}: truncated or not safetensors: {error}') from error
        return self._files[file]

    def slice(self, name: str) -> Any:
        """Returns a lazy view of a tensor: indexing it reads."""
        file, stored = self._place[name]
        try:
            return self._open(file).get_slice(stored)
        except SafetensorError as error:
            raise ValueError(f'{file}: tensor {stored!r} cannot be read: {error}') from error

    def expect(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Raises unless exactly these tensors are there, with these shapes."""
        missing = sorted(shapes.keys() - self._place.keys())
        if missing:
            raise ValueError(f'{self.directory}: {len(missing)} tensors are missing: '
                             f'{", ".join(missing[:8])}')
        # Some tied checkpoints hold the embedding a second time, as the head.
        ignored = {'lm_head.weight'} if tied else set()
        unknown = sorted(name for name in self._place.keys() - shapes.keys() - ignored
                         if not _NOT_PARAMETERS.search(name))
        if unknown:
            raise ValueError(f'{self.directory}: {len(unknown)} tensors do not belong to a model '
                             f'of this config: {", ".join(unknown[:8])}')
        for name, shape in shapes.items():
            found = tuple(self.slice(name).get_shape())
            if found != shape:
                raise ValueError(f'{self._place[name][0]}: tensor {name!r} has shape {found}, '
                                 f'expected {shape}')


def _published(name: str) -> str:
    for new, old in _NEW_LAYOUT:
        if name.startswith(new):
            return old + name[len(new):]
    return name


def _is_kernel(key: str) -> bool:
    return key.endswith('/kernel')


def _layers(key: str, shape: tuple[int, ...]) -> list[tuple[str, int | None]]:
    """The tensors that make up a parameter: name and layer (None if not stacked)."""
    name = tensor_name(key)
    if '{}' not in name:
        return [(name, None)]
    return [(name.format(layer), layer) for layer in range(shape[0])]


def _hf_shape(key: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """Shape of a tensor, from that of its parameter (without the layer axis)."""
    if key == 'visual/patch_embed/kernel':
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size,
                vision.patch_size)
    return shape[::-1] if _is_kernel(key) else shape


def _expected_shapes(shapes: Mapping[str, Any], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    expected = {}
    for key, leaf in shapes.items():
        for name, layer in _layers(key, leaf.shape):
            own = leaf.shape if layer is None else leaf.shape[1:]
            expected[name] = _hf_shape(key, own, config)
    return expected


def _read_parameter(
    tensors: _Tensors, key: str, leaf: Any, sharding: jax.sharding.Sharding, config: ModelConfig
) -> jax.Array:
    """Builds one parameter from its layers' tensors, shard by shard."""
    layers = _layers(key, leaf.shape)
    stacked = layers[0][1] is not None

    def read(index: tuple[slice, ...]) -> np.ndarray:
        shape = [len(range(*part.indices(n))) for part, n in zip(index, leaf.shape, strict=True)]
        out = np.empty(shape, leaf.dtype)
        wanted, within = (layers[index[0]], index[1:]) if stacked else (layers, index)
        for place, (name, _) in zip(out if stacked else out[None], wanted, strict=True):
            _read_tensor(tensors.slice(name), key, within, place)
        return out

    return jax.make_array_from_callback(leaf.shape, sharding, _once(read))


def _once(read: Callable[[tuple[slice, ...]], np.ndarray]) -> Callable:
    """Remembers the last slice: devices that hold the same one ask in a row."""
    last: dict[str, np.ndarray] = {}

    def cached(index: tuple[slice, ...]) -> np.ndarray:
        if str(index) not in last:
            last.clear()
            last[str(index)] = read(index)
        return last[str(index)]

    return cached


def _read_tensor(tensor: Any, key: str, index: tuple[slice, ...], out: np.ndarray) -> None:
    """Reads a slice of a parameter (without the layer axis) out of its tensor."""
    if not _is_kernel(key):
        out[...] = tensor[index]
        return
    rows, columns = index
    if key == 'visual/patch_embed/kernel':
        whole = tensor[columns]
        _transpose(whole.reshape(len(whole), -1)[:, rows], out)
    else:
        _transpose(tensor[columns, rows], out)


def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """Writes the transposed matrix, in blocks that stay in the CPU's cache.

    Six times as fast as numpy's own copy of a transposed `[8192, 2048]` array of
    bfloat16; kernels are nearly all of a checkpoint.
    """
    block = 64
    for start in range(0, len(matrix), block):
        out[:, start : start + block] = matrix[start : start + block].T


def _plan_shards(params: Params, limit: int) -> list[int]:
    """How many tensors, in order, go into each file of at most `limit` bytes."""
    shards, used = [0], 0
    for key, value in params.items():
        layers = _layers(key, value.shape)
        size = value.nbytes // len(layers)
        for _ in layers:
            if shards[-1] and used + size > limit:
                shards.append(0)
                used = 0
            shards[-1] += 1
            used += size
    return shards
