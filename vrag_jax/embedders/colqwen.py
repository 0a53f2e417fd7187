"""ColQwen2, ColQwen2.5 and last-token embedders: models on the policy's layers, and loading."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.embedders.prompts import CHAT, COLQWEN, Prompts
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.attention import choose_backend
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.hf_layout import WeightLayout
from vrag_jax.models.common.layers import linear
from vrag_jax.models.common.model import VisionLanguageModel
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.common.patch_packing import PatchBatch
from vrag_jax.models.common.peft import CONFIG_FILE, PeftAdapter, read_settings
from vrag_jax.models.families import config_from_hf, family_of
from vrag_jax.models.qwen2_5_vl.model import Qwen25VisionTower
from vrag_jax.models.qwen2_vl.model import Qwen2VisionTower
from vrag_jax.parallel.mesh import mesh_platform
from vrag_jax.parallel.sharding import Rules

PROJECTION = 'custom_text_proj'
TOWERS = {'qwen2_vl': Qwen2VisionTower, 'qwen2_5_vl': Qwen25VisionTower}
# Other programs' names of the same tensors.
_PREFIXES = ((r'^(base_model\.model\.|vlm\.)', ''), (r'^embedding_proj_layer\.', f'{PROJECTION}.'),
             (r'^language_model\.', 'model.'))


class VisualRetriever(VisionLanguageModel):
    """Images or texts to unit vectors, with the vision tower of the backbone's family.

    With a projection: one vector a token (`ColQwen2ForRetrieval`, colpali-engine's
    `ColQwen2_5`); without: the hidden state of the last token.

    Args:
      config: of the backbone; its head is not made.
      dims: of the projection; 0 is none.
      **options: see `VisionLanguageModel`.
    """

    def __init__(self, config: ModelConfig, dims: int, **options: Any):
        self.tower = TOWERS[config.model_type]  # type: ignore[misc]
        text = dataclasses.replace(config.text, tie_word_embeddings=True)
        super().__init__(dataclasses.replace(config, text=text), **options)
        self.dims = dims or text.hidden_size
        self.multi_vector = dims > 0
        if dims:
            self.custom_text_proj = linear(
                text.hidden_size, dims, self.language_model.numerics, options['rngs'], bias=True)

    def embed_tokens(
        self, tokens: jax.Array, position_ids: jax.Array, mask: jax.Array,
        images: PatchBatch | None = None, image_index: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds rows of tokens.

        Args:
          tokens: `[B, T]` int32.
          position_ids: `[3, B, T]` int32.
          mask: `[B, T]` bool, which tokens are real; padding may lie on either side.
          images: of the rows, or None.
          image_index: `[B, T]` int32, row among their features, -1 on text.

        Returns:
          `[B, T, dims]` float32 unit rows, zero on padding; `[B, dims]` without projection.
        """
        features = None if images is None else self.encode_images(images)
        hidden = self.hidden_states(
            tokens, position_ids, segment_ids=mask.astype(jnp.int32), image_features=features,
            image_index=image_index)
        if not self.multi_vector:
            last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
            return _unit(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
        return _unit(self.custom_text_proj(hidden)) * mask[..., None]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a visual embedder's files lie.

    Attributes:
      directory: of the config and the weights; of an adapter's base.
      adapter: directory of a LoRA adapter, or None.
      config: of the backbone.
      prompts: what the checkpoint is trained with.
      projected: whether it has a projection, and so a vector for each token.
    """

    directory: Path
    adapter: Path | None
    config: ModelConfig
    prompts: Prompts
    projected: bool

    @property
    def processor(self) -> Path:
        """Directory of tokenizer and image processor."""
        own = self.adapter
        return own if own and (own / 'tokenizer_config.json').is_file() else self.directory


def find_checkpoint(path: Path, projected: bool, base: str = '') -> Checkpoint:
    """Reads what kind of checkpoint a directory is.

    Args:
      path: of a whole checkpoint, or of a LoRA adapter.
      projected: whether it must have a projection to vectors of tokens.
      base: directory of the adapter's base; '' takes what `adapter_config.json` says, if that
        is a directory, or the directory of that name beside the adapter.

    Raises:
      FileNotFoundError: if the directory or its base is missing.
      ValueError: if it is something else.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f'{path}: no such checkpoint directory')
    adapter = None
    directory = path
    if (path / CONFIG_FILE).is_file():
        adapter = path
        named = read_settings(path).get('base_model_name_or_path') or ''
        choices = [Path(named), path.resolve().parent / Path(named).name] if named else []
        if base:
            choices = [Path(base)]
        found = [choice for choice in choices if (choice / 'config.json').is_file()]
        if not found:
            raise FileNotFoundError(
                f'{path} is an adapter of {named!r}, and there is no such model in '
                f'{" or ".join(map(str, choices)) or "its settings"}: put it there, or pass its '
                'directory as `base` (`colqwen2_base`)')
        directory = found[0]
    elif base:
        raise ValueError(f'{path} holds no {CONFIG_FILE}, so it has no base')
    file = directory / 'config.json'
    if not file.is_file():
        raise FileNotFoundError(f'{file}: no such model config')
    try:
        stored = json.loads(file.read_text('utf-8'))
        whole = stored.get('model_type') == 'colqwen2'
        if whole:
            stored = {'model_type': 'qwen2_vl', **(stored.get('vlm_config') or {})}
        config = config_from_hf(stored)
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from error
    if not projected and whole:
        raise ValueError(f'{path} is a ColQwen2, whose vectors are those of tokens')
    return Checkpoint(directory, adapter, config, COLQWEN if projected else CHAT, projected)


def open_checkpoint(checkpoint: Checkpoint) -> tuple[hf_checkpoint.Tensors, int]:
    """Opens the weights; returns them, and the dimensions of a projection, 0 without one.

    Raises:
      FileNotFoundError, ValueError: if there are none, or none of this kind.
    """
    tensors = hf_checkpoint.Tensors(checkpoint.directory, _layout(checkpoint.config))
    return tensors, _projection_dims(tensors) if checkpoint.projected else 0


def load(checkpoint: Checkpoint, dtype: str, mesh: Mesh | None, rules: Rules
         ) -> tuple[nnx.GraphDef[VisualRetriever], dict[str, jax.Array], int]:
    """Loads a model, its adapter merged.

    Args:
      checkpoint: what to load.
      dtype: of computation and parameters.
      mesh: of the parameters; None is the default device.
      rules: mesh axes of each logical axis.

    Returns:
      Structure, parameters by path, and dimensions of a vector.

    Raises:
      FileNotFoundError, ValueError: if files are missing or do not fit; names them.
    """
    tensors, dims = open_checkpoint(checkpoint)
    attention = choose_backend('auto', mesh_platform(mesh), jnp.dtype(dtype))
    graphdef, shapes = flat_params(nnx.eval_shape(lambda: VisualRetriever(
        checkpoint.config, dims, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype,
        attention=attention)))
    tensors.expect(shapes, r'^lm_head\.weight$')
    shardings: Mapping[str, Any] | None = None
    if mesh is not None:
        shardings = parameter_shardings(
            shapes, mesh, rules, family_of(checkpoint.config).axes)
    if checkpoint.adapter is None:
        params = hf_checkpoint.read_params(tensors, shapes, shardings)
    else:
        adapter = PeftAdapter(checkpoint.adapter, tensors.layout)
        params = hf_checkpoint.read_params(tensors, shapes, shardings, adapter.merge)
        adapter.expect_all_used()
    return graphdef, params, dims or checkpoint.config.text.hidden_size


def _layout(config: ModelConfig) -> WeightLayout:
    """The backbone's layout, under the names that colpali-engine's first checkpoints have."""
    layout = family_of(config).weights(config)

    def published_name(name: str) -> str:
        for pattern, replacement in _PREFIXES:
            name = re.sub(pattern, replacement, layout.published_name(name))
        return name

    return dataclasses.replace(layout, published_name=published_name)


def _projection_dims(tensors: hf_checkpoint.Tensors) -> int:
    try:
        return tensors.slice(f'{PROJECTION}.weight').get_shape()[0]
    except KeyError:
        raise ValueError(f'{tensors.directory}: no tensor {PROJECTION}.weight: this is no ColQwen '
                         'checkpoint') from None


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
