"""Qwen2.5-VL: images and tokens in, hidden states and logits out."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vrag_jax.models.common.decoder import Caches, Decoder, KVCache, init_cache
from vrag_jax.models.common.layers import MASKED, Numerics, linear
from vrag_jax.models.common.lookup import lookup
from vrag_jax.models.common.packing import PatchBatch
from vrag_jax.models.qwen2_5_vl.config import ModelConfig
from vrag_jax.models.qwen2_5_vl.vision import VisionTower

__all__ = ['KVCache', 'Qwen2_5_VL', 'init_cache']


class Qwen2_5_VL(nnx.Module):
    """The whole model (`Qwen2_5_VLForConditionalGeneration`).

    Parameters of a tower's layers are stacked: their leading axis is the layer.

    Args:
      config: sizes.
      rngs: stream `params` draws the random weights.
      dtype: of the computation.
      param_dtype: of the parameters.
      remat: what the backward pass computes again, see `Numerics`.
      attention: how the decoder's attention is worked out, see `Numerics`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = 'none',
        attention: str = 'plain',
    ):
        numerics = Numerics(jnp.dtype(dtype), jnp.dtype(param_dtype), remat, attention)
        self.config = config
        self.visual = VisionTower(config.vision, numerics, rngs)
        self.language_model = Decoder(config, numerics, rngs)
        if not config.text.tie_word_embeddings:
            self.lm_head = linear(
                config.text.hidden_size, config.text.vocab_size, numerics, rngs, bias=False)

    def encode_images(self, batch: PatchBatch) -> jax.Array:
        """Encodes packed images.

        Args:
          batch: see `packing.pack_images`.

        Returns:
          `[M, D]` features, one a merged token, images one after the other in
          raster order; zero on padding.
        """
        return self.visual(batch)

    def hidden_states(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        image_features: jax.Array | None = None,
        image_index: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs whole sequences, as in training.

        Args:
          tokens: `[B, T]` int32.
          position_ids: `[3, B, T]` int32, see `mrope`.
          segment_ids: `[B, T]` int32; tokens see earlier tokens of their own
            segment, 0 is padding. None makes each row one sequence.
          image_features: `[M, D]`.
          image_index: `[B, T]` int32 row of `image_features`, -1 on text.
          dropout_key: random key of the adapters' dropout; None drops nothing.

        Returns:
          `[B, T, D]` after the final norm.
        """
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        x = self._embed(tokens, image_features, image_index)
        return self.language_model(x, position_ids, segment_ids, dropout_key)

    def extend(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        recent: Caches,
        place: jax.Array | int,
        recent_seen: jax.Array,
        past: Caches | None = None,
        past_seen: jax.Array | None = None,
        image_features: jax.Array | None = None,
        image_index: jax.Array | None = None,
        layers: list | None = None,
    ) -> tuple[jax.Array, Caches]:
        """Runs new tokens of each row against kept keys and values: prefill and decode.

        Args:
          tokens: `[B, T]` int32.
          position_ids: `[3, B, T]` int32.
          recent, place, recent_seen, past, past_seen, layers: see `Decoder.extend`.
          image_features: `[M, D]`.
          image_index: `[B, T]` int32 row of `image_features`, -1 on text.

        Returns:
          `[B, T, D]` hidden states after the final norm and the new `recent`.
        """
        x = self._embed(tokens, image_features, image_index)
        return self.language_model.extend(
            x, position_ids, recent, place, recent_seen, past, past_seen, layers)

    def unembedding(self) -> jax.Array:
        """Returns the projection of hidden states to logits, `[D, V]`."""
        if self.config.text.tie_word_embeddings:
            return self.language_model.embed_tokens.embedding[...].T
        return self.lm_head.kernel[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Projects `[..., D]` hidden states to `[..., V]` float32 logits.

        Those of `config.suppressed_ids` are a large negative number: their
        probability is zero, and the softmax runs over the other ids.
        """
        kernel = self.unembedding()
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = jnp.matmul(rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)
        if self.config.suppressed_ids:
            # One bool an id, which XLA reads where it writes or reads the logits; a
            # scatter into them would be a pass of its own.
            suppressed = np.zeros(kernel.shape[-1], bool)
            suppressed[list(self.config.suppressed_ids)] = True
            logits = jnp.where(suppressed, MASKED, logits)
        return logits.reshape(*hidden.shape[:-1], kernel.shape[-1])

    def _embed(self, tokens, image_features, image_index) -> jax.Array:
        """Token embeddings with image features in place of the placeholders."""
        x = self.language_model.embed(tokens)
        if image_features is None or image_index is None:
            return x
        features = lookup(image_features, jnp.maximum(image_index, 0), x.dtype)
        return jnp.where((image_index >= 0)[..., None], features, x)
