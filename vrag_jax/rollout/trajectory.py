"""A finished episode: what was shown, sampled and earned."""

import dataclasses

import numpy as np
from PIL import Image

from vrag_jax.actions.action import Action
from vrag_jax.data.records import Question
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.perception.frames import Frame


@dataclasses.dataclass(frozen=True)
class ImageView:
    """An image in the trajectory.

    Attributes:
      key: hash of its pixels.
      image: RGB image exactly as the encoder sees it; None where it was dropped: the frame
        says how to render it again.
      frame: where on which page it lies.
      token_start: index in the trajectory's tokens of its first image token.
    """

    key: str
    image: Image.Image | None
    frame: Frame
    token_start: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """One thought, action and observation.

    Attributes:
      text: the policy's text, as sampled.
      action: what was parsed from it.
      observation: the text that was shown back.
      image: index into the trajectory's images of the image shown back.
      retrieved: page ids shown back by a search, in order.
    """

    text: str
    action: Action
    observation: str = ''
    image: int | None = None
    retrieved: tuple[str, ...] = ()


@dataclasses.dataclass
class Trajectory:
    """A whole episode.

    Attributes:
      question: what was asked.
      prompt: the text of the question's turn.
      tokens: `[T]` int32, token ids exactly as shown and sampled.
      loss_mask: `[T]` bool, True on sampled tokens.
      position_ids: `[3, T]` int32 M-RoPE positions.
      logprobs: `[T]` float32 by the sampler, 0 where not sampled.
      image_index: `[T]` int32 row among the features of all images, -1 on text.
      images: the images with their frames.
      processed: the same images as patches for the vision tower.
      turns: what happened, turn by turn.
      answer: text of the answer, None without one.
      finished: whether an answer was given.
      truncated: whether its end was cut off: its next observation would not have fitted, or
        its last turn ran into a limit of tokens without an answer.
      retrieved: page ids in the order in which they were shown.
      rewards: by name, and their weighted sum under 'total'.
      answer_score: the judge's score of the answer, in [0, 1].
      judge_failed: whether a judge model gave no verdict on the answer, which was then
        scored by rule.
    """

    question: Question
    prompt: str
    tokens: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    logprobs: np.ndarray
    image_index: np.ndarray
    images: list[ImageView]
    processed: list[ProcessedImage]
    turns: list[Turn]
    answer: str | None
    finished: bool
    truncated: bool
    retrieved: list[str]
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)
    answer_score: float = 0.0
    judge_failed: bool = False

    def without_tensors(self) -> 'Trajectory':
        """Returns what people look at: no tokens, nothing that belongs to tokens, no pixels.

        Frames, texts and rewards stay, so that an evaluation of thousands of questions fits
        into memory.
        """
        none = np.zeros(0, np.int32)
        return dataclasses.replace(
            self, tokens=none, loss_mask=np.zeros(0, bool),
            position_ids=np.zeros((3, 0), np.int32), logprobs=np.zeros(0, np.float32),
            image_index=none, processed=[],
            images=[dataclasses.replace(view, image=None) for view in self.images])

    def sequence(
        self,
        advantage: float | None = None,
        old_logprobs: np.ndarray | None = None,
    ) -> TokenSequence:
        """Returns what the learner needs of this trajectory.

        Args:
          advantage: given to every sampled token, or None outside RL.
          old_logprobs: `[T]` float32, or None.
        """
        mask = self.loss_mask.astype(np.float32)
        return TokenSequence(
            tokens=self.tokens,
            loss_mask=mask,
            position_ids=self.position_ids,
            image_index=self.image_index,
            images=tuple(self.processed),
            advantages=None if advantage is None else mask * np.float32(advantage),
            old_logprobs=old_logprobs,
        )
