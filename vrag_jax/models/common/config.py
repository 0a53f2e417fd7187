"""Sizes of a policy: its decoder, its vision tower, its special ids; HF configs in and out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from vrag_jax.models.common import hf_fields
from vrag_jax.models.common.pixels import PixelScale


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes that every vision tower over patches has; names as in HF's `vision_config`.

    A family adds its own fields, under the names that its HF config has for them, and says
    what they come to in the properties below.

    Attributes:
      pixels: how the image processor scales bytes; it comes from the processor's own file,
        not from the model's, and is not written to one.
      model_type: of the family, as `config.json` names it.
      hf_class: what the names of transformers' classes of the family begin with.

    Raises:
      ValueError: if sizes contradict each other; names the field.
    """

    model_type: ClassVar[str]
    hf_class: ClassVar[str]

    depth: int = 32
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    pixels: PixelScale = PixelScale()

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f'vision: width {self.width} must be a multiple of its '
                             f'{self.num_heads} heads')
        if self.head_dim % 4:
            raise ValueError(f'vision: head dimension {self.head_dim} must be a multiple of 4')
        if {len(self.pixels.mean), len(self.pixels.std)} != {self.in_channels}:
            raise ValueError(f'vision.pixels {self.pixels} must have a mean and a deviation for '
                             f'each of vision.in_channels = {self.in_channels}')

    @property
    def width(self) -> int:
        """Size of a patch's hidden state."""
        raise NotImplementedError

    @property
    def mlp_width(self) -> int:
        """Size of the hidden layer of a block's MLP."""
        raise NotImplementedError

    @property
    def output_width(self) -> int:
        """Size of a merged feature: the decoder's hidden size."""
        raise NotImplementedError

    @property
    def window_units(self) -> int:
        """Merged tokens a side of an attention window."""
        raise NotImplementedError

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers in which a patch sees its whole image, not its window alone."""
        raise NotImplementedError

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Reads the `vision_config` of a HF config.

        Raises:
          ValueError: if a field is null or asks for what is not supported; names it.
        """
        raise NotImplementedError

    def to_hf(self) -> dict[str, Any]:
        """Returns a `vision_config` as the published checkpoints write it."""
        raise NotImplementedError

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
        return self.width // self.num_heads

    @property
    def merge_area(self) -> int:
        """Patches that one token covers."""
        return self.spatial_merge_size**2

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

    `suppressed_ids` are never predicted: the model's `logits` masks them, for whoever
    samples and for whoever scores alike. They come from the tokenizer (see
    `tokenizer.ids_without_text`), not from a checkpoint, and are not written to one.

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
        text = self.text
        if text.hidden_size % text.num_attention_heads:
            raise ValueError(f'text.hidden_size {text.hidden_size} must be a multiple of its '
                             f'{text.num_attention_heads} heads')
        if sum(text.mrope_section) * 2 != text.head_dim:
            raise ValueError(f'text.mrope_section {text.mrope_section} must sum to half of the '
                             f'head dimension {text.head_dim}')
        if text.num_attention_heads % text.num_key_value_heads:
            raise ValueError('text.num_attention_heads must be a multiple of '
                             'text.num_key_value_heads')
        if self.vision.output_width != text.hidden_size:
            raise ValueError(f'the features of the vision tower are {self.vision.output_width} '
                             f'wide, but text.hidden_size is {text.hidden_size}')
        if not all(0 <= i < text.vocab_size for i in self.suppressed_ids):
            raise ValueError(f'suppressed_ids must be below text.vocab_size {text.vocab_size}')

    @property
    def model_type(self) -> str:
        """Name of the family, as `config.json` has it."""
        return self.vision.model_type

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], vision: type[VisionConfig]) -> 'ModelConfig':
        """Reads a HF `config.json`.

        Args:
          config: the parsed file; the decoder's fields may stand at the top (as
            published) or under `text_config` (as transformers 5 writes them). A field that
            is left out is what transformers' class has by default.
          vision: sizes of the family's vision tower.

        Raises:
          ValueError: if a field is null, or asks for what the port does not do (another
            activation, rotary scaling, sliding window).
        """
        text = hf_fields.of_text(config)
        yarn = text.pop('yarn')
        ids = {f.name: config.get(f.name, text.get(f.name)) for f in dataclasses.fields(cls)
               if f.name.endswith('token_id')}
        return cls(
            vision=vision.from_hf(config.get('vision_config') or {}),
            text=hf_fields.build(TextConfig, {**text, 'yarn': yarn and YarnConfig(**yarn)}),
            **dict[str, Any]((k, v) for k, v in ids.items() if isinstance(v, int)))

    def to_hf(self) -> dict[str, Any]:
        """Returns a HF config in the layout of the published checkpoints."""
        text = dataclasses.asdict(self.text)
        rope = {'type': 'mrope', 'mrope_section': list(text.pop('mrope_section'))}
        yarn = text.pop('yarn')
        if yarn is not None:
            yarn['attention_factor'] = yarn['attention_factor'] or None
            rope |= {'type': 'yarn', **{k: v for k, v in yarn.items() if v is not None}}
        ids = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
               if f.name.endswith('token_id')}
        return {
            'architectures': [f'{self.vision.hf_class}ForConditionalGeneration'],
            'model_type': self.model_type,
            **ids,
            **text,
            'hidden_act': 'silu',
            'use_sliding_window': False,
            'rope_scaling': rope,
            'vision_config': {'model_type': self.model_type, **self.vision.to_hf(),
                              # The published files use these names beside HF's own.
                              'in_chans': self.vision.in_channels,
                              'spatial_patch_size': self.vision.patch_size},
        }
