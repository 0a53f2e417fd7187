"""BERT and XLM-R encoders: sizes, module, names of the tensors in HF checkpoints."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vrag_jax.models.common.hf_layout import WeightLayout
from vrag_jax.models.common.layers import (
    INIT_STD,
    Numerics,
    layer_norm,
    linear,
    scan_layers,
    stack_layers,
)
from vrag_jax.parallel.sharding import constrain

# Model types, and whether positions are counted from behind the padding's id, as fairseq does.
OFFSET_POSITIONS = {'bert': False, 'roberta': True, 'xlm-roberta': True, 'camembert': True}

# Pieces of a parameter's path and of its tensor's name; `{}` is the layer.
_NAMES = (
    (r'^layers/', 'encoder.layer.{}.'),
    (r'q_proj/', 'attention.self.query.'),
    (r'k_proj/', 'attention.self.key.'),
    (r'v_proj/', 'attention.self.value.'),
    (r'o_proj/', 'attention.output.dense.'),
    (r'attention_norm/', 'attention.output.LayerNorm.'),
    (r'up_proj/', 'intermediate.dense.'),
    (r'down_proj/', 'output.dense.'),
    (r'output_norm/', 'output.LayerNorm.'),
    (r'^embed_tokens/', 'embeddings.word_embeddings.'),
    (r'^embed_positions/', 'embeddings.position_embeddings.'),
    (r'^embed_types/', 'embeddings.token_type_embeddings.'),
    (r'^norm/', 'embeddings.LayerNorm.'),
    (r'(kernel|scale|embedding)$', 'weight'),
)
# Of a head for pre-training, and buffers of old versions.
NOT_ENCODER = r'^(pooler|cls|lm_head|classifier)\.|position_ids$'


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes; names as in HF's config.

    `offset_positions`: whether the first token's position is `pad_token_id + 1`.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int
    offset_positions: bool

    @property
    def max_length(self) -> int:
        """Most tokens that there are positions for."""
        first = self.pad_token_id + 1 if self.offset_positions else 0
        return self.max_position_embeddings - first

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> 'BertConfig':
        """Reads a HF `config.json`.

        Raises:
          ValueError: if a field is missing, or asks for what is not supported.
        """
        kind = config.get('model_type')
        if kind not in OFFSET_POSITIONS:
            raise ValueError(f'model_type must be one of {tuple(OFFSET_POSITIONS)}, got {kind!r}')
        for name, wanted in (('hidden_act', 'gelu'), ('position_embedding_type', 'absolute')):
            if config.get(name, wanted) != wanted:
                raise ValueError(f'{name} must be {wanted!r}, got {config[name]!r}')
        sizes = {}
        for field in dataclasses.fields(cls):
            if field.name != 'offset_positions':
                if config.get(field.name) is None:
                    raise ValueError(f'field {field.name!r} is missing')
                sizes[field.name] = config[field.name]
        if sizes['hidden_size'] % sizes['num_attention_heads']:
            raise ValueError(f"hidden_size {sizes['hidden_size']} must be a multiple of its "
                             f"{sizes['num_attention_heads']} heads")
        return cls(**sizes, offset_positions=OFFSET_POSITIONS[kind])

    @classmethod
    def from_hf_file(cls, directory: Path) -> 'BertConfig':
        """Reads the `config.json` of a checkpoint directory."""
        file = directory / 'config.json'
        if not file.is_file():
            raise FileNotFoundError(f'{file}: no such model config')
        try:
            return cls.from_hf(json.loads(file.read_text('utf-8')))
        except ValueError as error:
            raise ValueError(f'{file}: {error}') from error


class BertEncoder(nnx.Module):
    """Tokens to hidden states (`BertModel`, `XLMRobertaModel`), bidirectional, post-norm.

    Args:
      config: sizes.
      numerics: how it computes; `attention` 'cudnn' is cuDNN's, anything else XLA's.
      rngs: stream `params` draws the random weights.
    """

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.config = config
        self.numerics = numerics
        self.embed_tokens = _embedding(config.vocab_size, config, numerics, rngs)
        self.embed_positions = _embedding(
            config.max_position_embeddings, config, numerics, rngs)
        self.embed_types = _embedding(config.type_vocab_size, config, numerics, rngs)
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, numerics, rngs)
        self.layers = stack_layers(
            lambda rngs: BertLayer(config, numerics, rngs), config.num_hidden_layers, rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          tokens: `[B, T]` int32.
          mask: `[B, T]` bool, which are real; padding may lie on either side.

        Returns:
          `[B, T, D]` hidden states of the last layer; anything finite on padding.
        """
        place = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        first = self.config.pad_token_id + 1 if self.config.offset_positions else 0
        x = self.embed_tokens(tokens) + self.embed_positions(place + first) + self.embed_types(
            jnp.zeros_like(tokens))
        x = constrain(self.norm(x), ('batch',))
        graphdef, stacked = nnx.split(self.layers)

        def body(x, params):
            return constrain(nnx.merge(graphdef, params)(x, mask), ('batch',))

        return scan_layers(body, x, stacked, self.numerics)


class BertLayer(nnx.Module):
    """Attention and a GELU MLP, each followed by its norm."""

    def __init__(self, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs):
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.implementation: Literal['cudnn', 'xla'] = (
            'cudnn' if numerics.attention == 'cudnn' else 'xla')
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(size, size, numerics, rngs, bias=True) for _ in range(4))
        self.attention_norm = layer_norm(size, config.layer_norm_eps, numerics, rngs)
        self.up_proj = linear(size, config.intermediate_size, numerics, rngs, bias=True)
        self.down_proj = linear(config.intermediate_size, size, numerics, rngs, bias=True)
        self.output_norm = layer_norm(size, config.layer_norm_eps, numerics, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1)
                   for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        attended = jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None, None, :], implementation=self.implementation)
        x = self.attention_norm(x + self.o_proj(attended.reshape(x.shape)))
        hidden = jax.nn.gelu(self.up_proj(x), approximate=False)
        return self.output_norm(x + self.down_proj(hidden))


def tensor_name(path: str) -> str:
    """Returns the tensor's name in a checkpoint, `{}` for the layer."""
    for pattern, replacement in _NAMES:
        path = re.sub(pattern, replacement, path)
    return path.replace('/', '.')


def published_name(name: str) -> str:
    """Returns the name in a bare encoder's checkpoint of one in that of a model with a head."""
    return re.sub(r'^(bert|roberta)\.', '', name).replace('.gamma', '.weight').replace(
        '.beta', '.bias')


LAYOUT = WeightLayout(tensor_name, published_name)


def _embedding(count: int, config: BertConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        count, config.hidden_size, dtype=numerics.dtype, param_dtype=numerics.param_dtype,
        embedding_init=nnx.initializers.normal(INIT_STD), rngs=rngs)
