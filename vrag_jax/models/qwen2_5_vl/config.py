"""Sizes of Qwen2.5-VL and Qwen2-VL models, from HF's config.json or by name."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrag_jax.models.common import hf_fields
from vrag_jax.models.common.pixels import PixelScale

# Model types, and what transformers' classes begin with.
_CLASSES = {'qwen2_5_vl': 'Qwen2_5_VL', 'qwen2_vl': 'Qwen2VL'}
ARCHITECTURES = tuple(_CLASSES)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; names as in HF's `vision_config` of Qwen2.5-VL.

    `tokens_per_second` matters to videos only and is kept for round trips. The tower of
    Qwen2-VL (`architecture` 'qwen2_vl') has LayerNorm, an MLP with quick GELU and full
    attention in every layer; its windows are only how patches lie in memory. `pixels` is how
    the image processor scales bytes; it comes from the processor's own file, not from the
    model's, and is not written to one.
    """

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 3584
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int = 2
    architecture: str = 'qwen2_5_vl'
    pixels: PixelScale = PixelScale()

    @property
    def patch_dim(self) -> int:
        """Numbers in a flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch of a still image."""
        return self.in_channels * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def merge_area(self) -> int:
        """Patches that one token covers."""
        return self.spatial_merge_size**2

    @property
    def window_units(self) -> int:
        """Merged tokens a side of an attention window."""
        return self.window_size // self.patch_size // self.spatial_merge_size

    @property
    def window_patches(self) -> int:
        """Patches in a whole attention window."""
        return self.window_units**2 * self.merge_area


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """Rotary frequencies stretched for contexts longer than trained on (YaRN, arXiv 2309.00071).

    Attributes:
      factor: by which low frequencies are divided.
      original_max_position_embeddings: positions that the model was trained on.
      beta_fast, beta_slow: turns within those positions from which on a frequency is kept,
        and up to which it is divided.
      attention_factor: of cosines and sines; 0 is `0.1 ln(factor) + 1`.
      truncate: whether the two bounds are whole dimensions.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder; names as in HF's config.

    `mrope_section` counts rotary frequencies (pairs of dimensions) for the
    temporal, height and width position; `yarn` changes the frequencies.
    """

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rope_theta: float = 1000000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 128000
    tie_word_embeddings: bool = False
    yarn: YarnConfig | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model: both towers and the ids of the special tokens.

    `suppressed_ids` are never predicted: `Qwen2_5_VL.logits` masks them, for whoever
    samples and for whoever scores alike. They come from the tokenizer (see
    `data.tokenizer.ids_without_text`), not from a checkpoint, and are not written to one.

    Raises:
      ValueError: if sizes contradict each other; names the field.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int = 151643
    eos_token_id: int = 151645
    suppressed_ids: tuple[int, ...] = ()

    def __post_init__(self):
        text, vision = self.text, self.vision
        for name, size, heads in (('text', text.hidden_size, text.num_attention_heads),
                                  ('vision', vision.hidden_size, vision.num_heads)):
            if size % heads:
                raise ValueError(f'{name}.hidden_size {size} must be a multiple of its '
                                 f'{heads} heads')
        if sum(text.mrope_section) * 2 != text.head_dim:
            raise ValueError(f'text.mrope_section {text.mrope_section} must sum to half of the '
                             f'head dimension {text.head_dim}')
        if text.num_attention_heads % text.num_key_value_heads:
            raise ValueError('text.num_attention_heads must be a multiple of '
                             'text.num_key_value_heads')
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(f'vision.out_hidden_size {vision.out_hidden_size} must equal '
                             f'text.hidden_size {text.hidden_size}')
        if vision.head_dim % 4:
            raise ValueError(f'vision head dimension {vision.head_dim} must be a multiple of 4')
        if vision.window_size % (vision.patch_size * vision.spatial_merge_size):
            raise ValueError(f'vision.window_size {vision.window_size} must be a multiple of '
                             'patch_size * spatial_merge_size')
        if len(vision.pixels.mean) != vision.in_channels or len(vision.pixels.std) != (
                vision.in_channels):
            raise ValueError(f'vision.pixels {vision.pixels} must have a mean and a deviation for '
                             f'each of vision.in_channels = {vision.in_channels}')
        if not all(0 <= i < vision.depth for i in vision.fullatt_block_indexes):
            raise ValueError(f'vision.fullatt_block_indexes {vision.fullatt_block_indexes} must '
                             f'be below vision.depth {vision.depth}')
        if not all(0 <= i < text.vocab_size for i in self.suppressed_ids):
            raise ValueError(f'suppressed_ids must be below text.vocab_size {text.vocab_size}')

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> 'ModelConfig':
        """Reads a HF `config.json` of model type `qwen2_5_vl` or `qwen2_vl`.

        Args:
          config: the parsed file; the decoder's fields may stand at the top (as
            published) or under `text_config` (as transformers 5 writes them). A field that
            is left out is what transformers' class has by default.

        Returns:
          The same sizes.

        Raises:
          ValueError: if a field is null, or asks for what the port does not do (another
            model type, activation, rotary scaling, sliding window).
        """
        kind = config.get('model_type')
        if kind not in ARCHITECTURES:
            raise ValueError(f'model_type must be one of {ARCHITECTURES}, got {kind!r}')
        text, vision = hf_fields.of_text(config), hf_fields.of_vision(config)
        yarn = text.pop('yarn')
        ids = {f.name: config.get(f.name, text.get(f.name)) for f in dataclasses.fields(cls)
               if f.name.endswith('token_id')}
        return cls(
            vision=_read(VisionConfig, {**vision, 'architecture': kind}, optional=('pixels',)),
            text=_read(TextConfig, {**text, 'yarn': yarn and YarnConfig(**yarn)}),
            **dict[str, Any]((k, v) for k, v in ids.items() if isinstance(v, int)))

    @classmethod
    def from_hf_file(cls, path: Path | str) -> 'ModelConfig':
        """Reads a HF `config.json`, or the one in a checkpoint directory."""
        path = Path(path)
        path = path / 'config.json' if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such model config')
        try:
            return cls.from_hf(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error

    def to_hf(self) -> dict[str, Any]:
        """Returns a HF config in the layout of the published checkpoints."""
        text = dataclasses.asdict(self.text)
        rope = {'type': 'mrope', 'mrope_section': list(text.pop('mrope_section'))}
        yarn = text.pop('yarn')
        if yarn is not None:
            yarn['attention_factor'] = yarn['attention_factor'] or None
            rope |= {'type': 'yarn', **{k: v for k, v in yarn.items() if v is not None}}
        kind = self.vision.architecture
        ids = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
               if f.name.endswith('token_id')}
        return {
            'architectures': [f'{_CLASSES[kind]}ForConditionalGeneration'],
            'model_type': kind,
            **ids,
            **text,
            'hidden_act': 'silu',
            'use_sliding_window': False,
            'rope_scaling': rope,
            'vision_config': {'model_type': kind, **_hf_vision(self.vision),
                              # The published files use these names beside HF's own.
                              'in_chans': self.vision.in_channels,
                              'spatial_patch_size': self.vision.patch_size},
        }


def _hf_vision(config: VisionConfig) -> dict[str, Any]:
    """A `vision_config` as the published checkpoints write it."""
    vision = dataclasses.asdict(config)
    del vision['architecture'], vision['pixels']
    if config.architecture == 'qwen2_vl':
        for name in ('window_size', 'fullatt_block_indexes', 'tokens_per_second',
                     'out_hidden_size', 'intermediate_size'):
            del vision[name]
        ratio, rest = divmod(config.intermediate_size, config.hidden_size)
        return {**vision, 'hidden_act': 'quick_gelu', 'embed_dim': config.hidden_size,
                'hidden_size': config.out_hidden_size,
                'mlp_ratio': config.intermediate_size / config.hidden_size if rest else ratio}
    vision['fullatt_block_indexes'] = list(vision['fullatt_block_indexes'])
    return {**vision, 'hidden_act': 'silu'}


def _read(cls: type, fields: Mapping[str, Any], optional: tuple[str, ...] = ()) -> Any:
    """Builds a config dataclass from the fields of a HF config."""
    values = {field.name: fields[field.name] for field in dataclasses.fields(cls)
              if field.name in fields or field.name not in optional}
    return cls(**{name: tuple(value) if isinstance(value, list) else value
                  for name, value in values.items()})


_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'qwen2_5_vl_3b': (
        dict(out_hidden_size=2048),
        dict(vocab_size=151936, hidden_size=2048, intermediate_size=11008,
             num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
             tie_word_embeddings=True)),
    'qwen2_5_vl_7b': (
        dict(out_hidden_size=3584),
        dict(hidden_size=3584, intermediate_size=18944,
             num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4)),
    'qwen2_5_vl_32b': (
        dict(out_hidden_size=5120, intermediate_size=3456),
        dict(hidden_size=5120, intermediate_size=27648,
             num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8)),
    'qwen2_5_vl_72b': (
        dict(out_hidden_size=8192, intermediate_size=3456),
        dict(hidden_size=8192, intermediate_size=29568,
             num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)),
    # With the usual base and sections the frequencies of an image's width turn by less
    # than 0.02 a column, and a small model that starts from random weights does not learn
    # to tell neighbouring columns apart. These give the width 0.2 a column, and keep low
    # frequencies for finding a token by what it is, however far away.
    'tiny': (
        dict(depth=2, hidden_size=128, intermediate_size=256, num_heads=4, out_hidden_size=128,
             fullatt_block_indexes=(1,)),
        dict(hidden_size=128, intermediate_size=384, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, rope_theta=1000.0,
             mrope_section=(2, 2, 12), tie_word_embeddings=True)),
}
PRESETS = tuple(_SIZES)


def preset(name: str, *, vocab_size: int | None = None, **special_ids: int) -> ModelConfig:
    """Returns the sizes of a published model, or of the tiny one.

    Args:
      name: one of `PRESETS`.
      vocab_size: overrides the preset's; 'tiny' has none of its own.
      **special_ids: overrides of `ModelConfig`'s token ids.

    Raises:
      ValueError: if the name is unknown, or 'tiny' is given no vocabulary.
    """
    if name not in _SIZES:
        raise ValueError(f'preset must be one of {PRESETS}, got {name!r}')
    if name == 'tiny' and vocab_size is None:
        raise ValueError("preset 'tiny' needs a vocab_size")
    vision, text = _SIZES[name]
    if vocab_size is not None:
        text = {**text, 'vocab_size': vocab_size}
    return ModelConfig(VisionConfig(**vision), TextConfig(**text), **dict[str, Any](special_ids))
