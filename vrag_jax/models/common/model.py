"""A vision tower over patches and a decoder: the models of the Qwen2-VL line."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.decoder import Caches, Decoder
from vrag_jax.models.common.layers import MASKED, Numerics, linear
from vrag_jax.models.common.lookup import lookup
from vrag_jax.models.common.patch_packing import PatchBatch
from vrag_jax.models.common.vision import VisionTower
from vrag_jax.models.policy import PolicyModel


class VisionLanguageModel(PolicyModel):
    """Image features in the places of their placeholders, before the decoder.

    Args:
      config: sizes.
      rngs: stream `params` draws the random weights.
      dtype: of the computation.
      param_dtype: of the parameters.
      remat: what the backward pass computes again, see `Numerics`.
      attention: how the decoder's attention is worked out, see `Numerics`.

    Attributes:
      tower: class of the vision tower, set by each family.
    """

    tower: ClassVar[type[VisionTower]]

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
        self.config, self.numerics = config, numerics
        self.visual = self.tower(config.vision, numerics, rngs)
        self.language_model = Decoder(config, numerics, rngs)
        if not config.text.tie_word_embeddings:
            self.lm_head = linear(
                config.text.hidden_size, config.text.vocab_size, numerics, rngs, bias=False)

    def encode_images(self, batch: PatchBatch) -> jax.Array:
        """Encodes packed images to `[M, D]`, see `PolicyModel.encode_images`."""
        return self.visual(batch)

    def hidden_states(
        self, tokens, position_ids, *, segment_ids=None, image_features=None, image_index=None,
        dropout_key=None,
    ) -> jax.Array:
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        x = self.embed(tokens, image_features, image_index)
        return self.language_model(x, position_ids, segment_ids, dropout_key)

    def extend(
        self, tokens, position_ids, recent, place, recent_seen, past=None, past_seen=None,
        image_features=None, image_index=None, layers=None,
    ) -> tuple[jax.Array, Caches]:
        x = self.embed(tokens, image_features, image_index)
        return self.language_model.extend(
            x, position_ids, recent, place, recent_seen, past, past_seen, layers)

    def split_layers(self) -> list:
        return self.language_model.split_layers()

    def adaptable(self) -> nnx.Module:
        return self.language_model.layers

    def unembedding(self) -> jax.Array:
        if self.config.text.tie_word_embeddings:
            return self.language_model.embed_tokens.embedding[...].T
        return self.lm_head.kernel[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
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

    def embed(self, tokens, image_features, image_index) -> jax.Array:
        """Token embeddings with image features in place of the placeholders."""
        x = self.language_model.embed(tokens)
        if image_features is None or image_index is None:
            return x
        features = lookup(image_features, jnp.maximum(image_index, 0), x.dtype)
        return jnp.where((image_index >= 0)[..., None], features, x)
