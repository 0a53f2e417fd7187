"""HF checkpoints in and out, a tensor at a time, by one process or by several."""

import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from vrag_jax.models.common import hf_files, hf_layout, safetensors_files
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.hf_layout import WeightLayout
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.safetensors_files import TensorSpec
from vrag_jax.models.families import family_of, read_config
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.distributed import barrier, is_main
from vrag_jax.parallel.processes import exchange, to_host

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
_NOT_PARAMETERS = ('rotary_emb.inv_freq', 'rotary_pos_emb.inv_freq')
# Tensors that are copied and transposed at the same time; each is in memory.
_THREADS = min(8, os.cpu_count() or 1)


def load(
    path: Path | str,
    config: ModelConfig | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: str = 'none',
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    convert: Callable[[str, jax.Array], Any] = lambda path, value: value,
) -> PolicyModel:
    """Loads a checkpoint directory straight into the wanted dtype and shardings.

    A process reads only the slices of its own devices. Besides what is on the devices,
    its host holds one device's slice of one parameter, and one more that is on its way.

    Args:
      path: directory with `config.json` and `model.safetensors`, or shards and
        `model.safetensors.index.json`; either naming of the tensors, the
        published one (`model.layers…`, `visual…`) or that of transformers 5
        (`model.language_model.layers…`, `model.visual…`).
      config: sizes; None reads them from the directory.
      dtype: of the computation.
      param_dtype: of the parameters.
      remat: see `Numerics`.
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
    config = config or read_config(path)
    family = family_of(config)
    abstract = nnx.eval_shape(lambda: family.model(
        config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, remat=remat))
    graphdef, shapes = flat_params(abstract)
    tensors = Tensors(path, family.weights(config))
    # Some tied checkpoints hold the embedding a second time, as the head.
    tensors.expect(shapes,
                   ignored=r'^lm_head\.weight$' if config.text.tie_word_embeddings else None)
    return merge(graphdef, read_params(tensors, shapes, shardings, convert))


def read_params(
    tensors: 'Tensors',
    shapes: Mapping[str, Any],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    convert: Callable[[str, jax.Array], Any] = lambda path, value: value,
) -> dict[str, Any]:
    """Reads the parameters of any model out of the tensors of its checkpoint.

    Args:
      tensors: what `Tensors.expect` has found in order.
      shapes: `ShapeDtypeStruct`s by path; values get their dtypes.
      shardings, convert: see `load`.

    Returns:
      What `convert` returned, by path.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ThreadPoolExecutor(_THREADS) as pool:
        return {
            path: convert(path, _read_parameter(
                tensors, path, leaf, (shardings or {}).get(path, default), pool))
            for path, leaf in shapes.items()
        }


def save(model: PolicyModel, path: Path | str, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes a directory that the family's class of transformers loads; see `save_params`."""
    _, params = flat_params(model)
    save_params(params.__getitem__, params, model.config, path, max_shard_bytes)


def save_params(
    value: Callable[[str], jax.Array],
    shapes: Mapping[str, Any],
    config: ModelConfig,
    path: Path | str,
    max_shard_bytes: int = 5 * 10**9,
    *,
    dtype: DTypeLike | None = None,
    source: Path | None = None,
    finish: Callable[[Path], None] = lambda directory: None,
) -> None:
    """Writes a checkpoint directory from parameters that need not all be there at once.

    It appears under its name only when it is complete. Of several processes all must
    call this; the first writes. A tensor of which it has only a part is gathered to all
    of them. Besides the parameter whose turn it is, memory holds a few tensors.

    Args:
      value: gives a parameter by its path: it is asked for once, in the order of
        `shapes`, and let go before the next one is.
      shapes: parameters or `ShapeDtypeStruct`s, by path.
      config: sizes.
      path: directory to make.
      max_shard_bytes: most bytes of tensors in a file, unless one is larger.
      dtype: of the tensors that are written, each cast when its turn comes; None is the
        parameters' own.
      source: checkpoint directory whose `config.json` this model's is, but for the dtype;
        None writes one of the sizes.
      finish: adds files to the directory before it appears; called in the first process.

    Raises:
      FileExistsError: if `path` exists and is not an empty directory.
      ValueError: if a parameter is not of its shape and dtype.
    """
    path = Path(path)
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if exchange(occupied)[0]:
        raise FileExistsError(f'{path} exists already; a checkpoint needs a new directory')
    tensors = hf_tensors(((name, value(name)) for name in shapes), config, dtype)
    if is_main():
        partial = path.with_name(path.name + '.partial')
        shutil.rmtree(partial, ignore_errors=True)  # Left by a run that was killed.
        partial.mkdir(parents=True)
        _write_shards(tensors, _plan_shards(shapes, config, max_shard_bytes, dtype), partial)
        written = jnp.dtype(dtype or next(iter(shapes.values())).dtype).name
        stored = None
        if source is not None:
            stored = json.loads((source / hf_files.CONFIG_FILE).read_text('utf-8'))
        hf_config = hf_files.exported_config(config, written, stored)
        (partial / hf_files.CONFIG_FILE).write_text(json.dumps(hf_config, indent=2) + '\n')
        finish(partial)
        partial.replace(path)
    else:
        for _ in tensors:
            pass
    barrier('checkpoint saved')  # Nobody goes on to read it before.


def hf_tensors(
    params: Iterable[tuple[str, jax.Array]], config: ModelConfig, dtype: DTypeLike | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a checkpoint by their published names, a few at a time.

    Where an array lies on devices of several processes all must go through this; each
    tensor is gathered, and yielded in the first process only.

    Args:
      params: path and parameter, or anything of its shape such as its gradient.
      config: sizes.
      dtype: to which each is cast; None is its own.
    """
    layout = family_of(config).weights(config)
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, value in params:
            tensors = layout.layers(path, value.shape)
            convert = functools.partial(layout.to_tensor, path)
            for at in range(0, len(tensors), _THREADS):
                some = tensors[at : at + _THREADS]
                # Gathered by this thread: processes must do it in the same order.
                whole = [_on_host(value, layer, dtype) for _, layer in some]
                if is_main():
                    yield from zip(
                        (name for name, _ in some), pool.map(convert, whole), strict=True)
            del value, whole  # Before the next is made.


class Tensors:
    """The tensors of a checkpoint directory by their published names.

    A file is open only while something is read from it: what has been read of a mapped
    file counts as memory of the process.

    Args:
      directory: of the checkpoint.
      layout: of the model that it is a checkpoint of.

    Raises:
      FileNotFoundError: if the directory holds no safetensors.
      ValueError: if a file is truncated.
    """

    def __init__(self, directory: Path, layout: WeightLayout):
        self.directory = directory
        self.layout = layout
        self._place = {layout.published_name(name): (file, name) for file, name in self._names()}

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return sorted({file for file, _ in self._place.values()})

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
            for name in _open(single).keys():
                yield single, name
        else:
            raise FileNotFoundError(f'{self.directory}: neither {SINGLE_FILE} nor {INDEX_FILE}'
                                    f'{_of_bin(self.directory)}')

    def slice(self, name: str, opened: Any = None) -> Any:
        """Returns a lazy view of a tensor: indexing it reads."""
        file, stored = self._place[name]
        try:
            return (opened or _open(file)).get_slice(stored)
        except SafetensorError as error:
            raise ValueError(f'{file}: tensor {stored!r} cannot be read: {error}') from error

    def expect(self, params: Mapping[str, Any], ignored: str | None = None) -> None:
        """Raises unless exactly the tensors of these parameters are there, with their shapes.

        Args:
          params: parameters or `ShapeDtypeStruct`s, by path.
          ignored: regular expression of names that may be there as well.
        """
        shapes = self.layout.expected_shapes(params)
        missing = sorted(shapes.keys() - self._place.keys())
        if missing:
            raise ValueError(f'{self.directory}: {len(missing)} tensors are missing: '
                             f'{", ".join(missing[:8])}')
        unknown = sorted(name for name in self._place.keys() - shapes.keys()
                         if not name.endswith(_NOT_PARAMETERS)
                         and not (ignored and re.search(ignored, name)))
        if unknown:
            raise ValueError(f'{self.directory}: {len(unknown)} tensors do not belong to a model '
                             f'of this config: {", ".join(unknown[:8])}')
        opened = {file: _open(file) for file in {self._place[name][0] for name in shapes}}
        for name, shape in shapes.items():
            file = self._place[name][0]
            found = tuple(self.slice(name, opened[file]).get_shape())
            if found != shape:
                raise ValueError(f'{file}: tensor {name!r} has shape {found}, expected {shape}')


def _of_bin(directory: Path) -> str:
    """What to do about weights that are pickles, which run what is in them when read."""
    found = [name for name in ('pytorch_model.bin', 'pytorch_model.bin.index.json')
             if (directory / name).is_file()]
    if not found:
        return ''
    config = directory / hf_files.CONFIG_FILE
    stored = json.loads(config.read_text('utf-8')) if config.is_file() else {}
    model = (stored.get('architectures') or ['AutoModel'])[0]
    return (f', but {found[0]}, which is not read; convert it where torch and transformers are: '
            f'python -c "import transformers; transformers.{model}.from_pretrained('
            f"{str(directory)!r}, torch_dtype='auto').save_pretrained({str(directory)!r})\"")


def _open(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f'{file}: no such file, but {INDEX_FILE} names it')
    try:
        return safe_open(file, 'numpy')
    except SafetensorError as error:
        raise ValueError(f'{file}: truncated or not safetensors: {error}') from error


def _read_parameter(
    tensors: Tensors, path: str, leaf: Any, sharding: jax.sharding.Sharding,
    pool: ThreadPoolExecutor,
) -> jax.Array:
    """Builds one parameter from its layers' tensors, a device's slice after the other."""
    stored = tensors.layout.layers(path, leaf.shape)
    stacked = stored[0][1] is not None

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in index], leaf.dtype)
        wanted, within = (stored[index[0]], index[1:]) if stacked else (stored, index)

        def read_tensor(name: str, place: np.ndarray) -> None:
            hf_layout.read_slice(path, tensors.slice(name), within, place)

        list(pool.map(read_tensor, (name for name, _ in wanted), out if stacked else [out]))
        return out

    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(part.indices(size)[:2]
                       for part, size in zip(index or (), leaf.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    placed: list[jax.Array] = []
    for bounds, devices in holders.items():
        value = read(tuple(slice(*part) for part in bounds))
        # Copies to devices go on while the next slice is read; no more than one is waited for.
        jax.block_until_ready(placed)
        placed += [jax.device_put(value, device) for device in devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed)


def _write_shards(
    tensors: Iterator[tuple[str, np.ndarray]], shards: list[list[TensorSpec]], directory: Path
) -> None:
    """Writes files of these tensors, and their index if there are several."""
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards, start=1):
        file = SINGLE_FILE
        if len(shards) > 1:
            file = f'model-{number:05}-of-{len(shards):05}.safetensors'
        safetensors_files.write(directory / file, specs, itertools.islice(tensors, len(specs)))
        weight_map |= dict.fromkeys((spec.name for spec in specs), file)
    if len(shards) > 1:
        size = sum(spec.nbytes for specs in shards for spec in specs)
        index = {'metadata': {'total_size': size}, 'weight_map': weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))


def _on_host(value: jax.Array, layer: int | None, dtype: DTypeLike | None) -> np.ndarray:
    """The whole of a parameter, or of one layer of it, in a dtype if one is given."""
    # An array keeps its copy on the host: what is copied must not be the model's own.
    own = jnp.copy(value) if layer is None else value[layer]
    return to_host(own if dtype is None else own.astype(dtype))


def _plan_shards(
    shapes: Mapping[str, Any], config: ModelConfig, limit: int, dtype: DTypeLike | None
) -> list[list[TensorSpec]]:
    """Which tensors, in order, go into each file of at most `limit` bytes."""
    layout = family_of(config).weights(config)
    shards: list[list[TensorSpec]] = [[]]
    used = 0
    for path, leaf in shapes.items():
        for name, shape in layout.expected_shapes({path: leaf}).items():
            spec = TensorSpec(name, np.dtype(dtype or leaf.dtype), shape)
            if shards[-1] and used + spec.nbytes > limit:
                shards.append([])
                used = 0
            shards[-1].append(spec)
            used += spec.nbytes
    return shards
