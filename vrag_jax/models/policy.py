"""What a family of policies gives the rest of the package, and nothing that it would not need.

A family is a folder of `models/` (or a package of somebody else's) with a `PolicyFamily` that
`families.register` makes known. Sampler, learner, rollouts and plans are written in these terms:

- images are cut into patches and packed on the host (`ImageSpec`), and encoded on the devices to
  *features*: a pytree whose leaves share their leading axis, one row a token of an image. Qwen's
  towers give one leaf; a tower that also feeds deeper layers gives one more for each.
- tokens have three positions each (time, height, width), `[3, T]` int32; those of text are equal.
- keys and values are kept in `decoder.KVCache`s, by layer and head as `config.text` says.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from PIL import Image

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.decoder import Caches
from vrag_jax.models.common.hf_layout import WeightLayout
from vrag_jax.models.common.layers import Numerics
from vrag_jax.parallel.sharding import ArrayAxes

# `(t, h, w)`: an image's size in patches.
Grid = tuple[int, int, int]
# Image features: any pytree of arrays `[M, ...]`.
Features = Any


class PolicyModel(nnx.Module):
    """A policy: images and tokens in, hidden states and logits out.

    Parameters of layers are stacked: their leading axis is the layer.

    Attributes:
      config: sizes.
      numerics: how it computes.
    """

    config: ModelConfig
    numerics: Numerics

    def encode_images(self, batch: Any) -> Features:
        """Encodes packed images.

        Args:
          batch: of `ImageSpec.pack`.

        Returns:
          Features, one row a token, images one after the other in raster order; zero on
          padding.
        """
        raise NotImplementedError

    def hidden_states(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        image_features: Features | None = None,
        image_index: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs whole sequences, as in training.

        Args:
          tokens: `[B, T]` int32.
          position_ids: `[3, B, T]` int32.
          segment_ids: `[B, T]` int32; tokens see earlier tokens of their own
            segment, 0 is padding. None makes each row one sequence.
          image_features: of `encode_images`.
          image_index: `[B, T]` int32 row of `image_features`, -1 on text.
          dropout_key: random key of the adapters' dropout; None drops nothing.

        Returns:
          `[B, T, D]` after the final norm.
        """
        raise NotImplementedError

    def extend(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        recent: Caches,
        place: jax.Array | int,
        recent_seen: jax.Array,
        past: Caches | None = None,
        past_seen: jax.Array | None = None,
        image_features: Features | None = None,
        image_index: jax.Array | None = None,
        layers: list | None = None,
    ) -> tuple[jax.Array, Caches]:
        """Runs new tokens of each row against kept keys and values: prefill and decode.

        Args:
          tokens: `[B, T]` int32.
          position_ids: `[3, B, T]` int32.
          recent, place, recent_seen, past, past_seen, layers: see `Decoder.extend`.
          image_features: of `encode_images`.
          image_index: `[B, T]` int32 row of `image_features`, -1 on text.

        Returns:
          `[B, T, D]` hidden states after the final norm and the new `recent`.
        """
        raise NotImplementedError

    def split_layers(self) -> list:
        """Returns the parameters of each layer of the decoder, for `extend`."""
        raise NotImplementedError

    def adaptable(self) -> nnx.Module:
        """Returns the stacked layers that low-rank adapters may be added to."""
        raise NotImplementedError

    def unembedding(self) -> jax.Array:
        """Returns the projection of hidden states to logits, `[D, V]`."""
        raise NotImplementedError

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Projects `[..., D]` hidden states to `[..., V]` float32 logits.

        Those of `config.suppressed_ids` are a large negative number: their
        probability is zero, and the softmax runs over the other ids.
        """
        raise NotImplementedError


class PackedImages(Protocol):
    """What `ImageSpec.pack` needs of an image."""

    @property
    def patches(self) -> np.ndarray: ...

    @property
    def grid_thw(self) -> Grid: ...


class ImageSpec(Protocol):
    """How a family takes images.

    Attributes:
      factor: sides of an image are multiples of so many pixels, those of one token.
      window_tokens: tokens of a window, the unit in which buffers of patches are sized.
    """

    @property
    def factor(self) -> int: ...

    @property
    def window_tokens(self) -> int: ...

    def cut(self, image: Image.Image) -> tuple[np.ndarray, Grid]:
        """Returns an image's patches, as few bytes as it can, and its size in patches."""

    def tokens(self, grid: Grid) -> int:
        """Returns the tokens of an image."""

    def positions(self, start: int, grid: Grid) -> tuple[np.ndarray, int]:
        """Returns positions of an image's tokens, `[3, n]` int32, and that of the next token."""

    def count_windows(self, grids: Iterable[Grid]) -> int:
        """Returns how many windows of a buffer images take together."""

    def pack(self, images: Sequence[PackedImages], windows: int | None = None,
             span: int | None = None) -> Any:
        """Packs images into a pytree of buffers of static shape.

        Args:
          images: one after the other.
          windows: of the buffer; None takes the bucket that holds the images.
          span: windows that the largest image may take; None takes its bucket.

        Raises:
          ValueError: if the images do not fit.
        """

    def features(self, rows: int, dtype: Any) -> Any:
        """Returns the shapes of so many rows of features, as a pytree."""

    def check_processor(self, processor: Any) -> None:
        """Raises a `ValueError` if a HF image processor does otherwise than the vision tower."""


@dataclasses.dataclass(frozen=True)
class PolicyFamily:
    """A family of policies.

    Attributes:
      model_type: its name in `config.json`.
      model: class of the model, called as `model(config, rngs=, dtype=, param_dtype=, remat=,
        attention=)`.
      from_hf: reads a parsed `config.json`; `ModelConfig.to_hf` is its inverse.
      presets: sizes by name; a vocabulary of 0 is that of the tokenizer which a run trains.
      images: how it takes images.
      weights: where its parameters lie in a checkpoint of a config.
      axes: logical axes of its parameters, see `parallel.sharding`.
      vision: regular expression, searched in a parameter's path, of the vision tower.
      special_tokens: tokens by the field of `ModelConfig` that holds their id.
      load_processor: HF image processor of a checkpoint's directory.
      new_processor: HF image processor of a policy that starts from random weights.
      with_processor: `(config, processor) -> config` that scales pixels as the processor does.
      processor_class: name of transformers' processor, which exports state.
    """

    model_type: str
    model: Callable[..., PolicyModel]
    from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    presets: Mapping[str, ModelConfig]
    images: Callable[[ModelConfig], ImageSpec]
    weights: Callable[[ModelConfig], WeightLayout]
    axes: Sequence[ArrayAxes]
    vision: str
    special_tokens: Mapping[str, str]
    load_processor: Callable[[Path], Any]
    new_processor: Callable[[ModelConfig], Any]
    with_processor: Callable[[ModelConfig, Any], ModelConfig]
    processor_class: str
