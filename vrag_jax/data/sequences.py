"""A tokenised multimodal sequence: the one unit that the learner trains on."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vrag_jax.models.common.images import ProcessedImage


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """Tokens with everything the learner needs to know of each of them.

    Attributes:
      tokens: `[T]` int32 token ids.
      loss_mask: `[T]` float32, 1 where the token is trained on (it was sampled).
      position_ids: `[3, T]` int32 M-RoPE positions (time, height, width).
      image_index: `[T]` int32 row among the merged features of `images`
        concatenated, -1 for text.
      images: the images, in order of appearance.
      advantages: `[T]` float32, or None outside RL.
      old_logprobs: `[T]` float32 log-probs under the policy before the update, or None.
      ref_logprobs: `[T]` float32 log-probs under the reference policy, or None.
      sampler_logprobs: `[T]` float32 log-probs as recorded when sampled, or None.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    image_index: np.ndarray
    images: tuple[ProcessedImage, ...] = ()
    advantages: np.ndarray | None = None
    old_logprobs: np.ndarray | None = None
    ref_logprobs: np.ndarray | None = None
    sampler_logprobs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def global_rows(
    image_index: np.ndarray, images: Sequence[ProcessedImage], rows: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Maps rows among a sequence's own image features to rows of a shared buffer.

    Args:
      image_index: `[T]` int32, rows among the features of `images`, -1 on text.
      images: the sequence's images in order.
      rows: `[tokens]` int32 rows of each image's features in the buffer, by key.

    Returns:
      `[T]` int32 rows of the buffer, -1 on text.
    """
    if not images:
        return image_index
    table = np.concatenate([rows[image.key] for image in images])
    return np.where(image_index >= 0, table[image_index], -1).astype(np.int32)
