"""An episode under way: an append-only record of tokens, masks and positions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vrag_jax.data.records import Question
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.mrope import text_positions
from vrag_jax.models.families import image_spec
from vrag_jax.perception.frames import Frame
from vrag_jax.rollout.trajectory import ImageView, Trajectory, Turn


class Episode:
    """Token-level record of one question's episode.

    Every token is appended once, with its mask, position and image reference;
    nothing is decoded and tokenised again, so the learner trains on exactly
    what was sampled.

    Args:
      question: what is asked.
      prompt: text of the question's turn.
      policy: sizes and special ids of the policy.
    """

    def __init__(self, question: Question, prompt: str, policy: ModelConfig):
        self.question = question
        self.prompt = prompt
        self.images: list[ImageView] = []
        self.processed: list[ProcessedImage] = []
        self.turns: list[Turn] = []
        self.retrieved: list[str] = []
        self.done = False
        self.truncated = False
        self.next_position = 0
        self._image_token_id = policy.image_token_id
        self._image_spec = image_spec(policy)
        self._feature_count = 0
        self._tokens: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []
        self._image_index: list[np.ndarray] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append_text(
        self,
        ids: Sequence[int] | np.ndarray,
        logprobs: np.ndarray | None = None,
        sampled: bool = False,
    ) -> None:
        """Appends text tokens.

        Args:
          ids: token ids.
          logprobs: `[n]` float32 by the sampler, if it drew them.
          sampled: whether the tokens are the policy's own (trained on).
        """
        n = len(ids)
        if not n:
            return
        self._append(
            np.asarray(ids, np.int32),
            np.full(n, sampled),
            text_positions(self.next_position, n),
            np.zeros(n, np.float32) if logprobs is None else logprobs,
            np.full(n, -1, np.int32),
        )
        self.next_position += n

    def append_observation(
        self, ids: Sequence[int], shown: tuple[Image.Image, Frame, ProcessedImage] | None = None
    ) -> None:
        """Appends an observation, whose image placeholders, if any, are one run.

        Args:
          ids: token ids, with `processed.tokens` placeholders if an image is shown.
          shown: the image, its frame and its patches.

        Raises:
          ValueError: if the placeholders are not as many as the image has tokens.
        """
        tokens = np.asarray(ids, np.int32)
        places = np.flatnonzero(tokens == self._image_token_id)
        expected = shown[2].tokens if shown else 0
        if len(places) != expected:
            raise ValueError(
                f'the observation holds {len(places)} image placeholders, '
                f'but its image has {expected} tokens'
            )
        if shown is None:
            self.append_text(tokens)
            return
        image, frame, processed = shown
        first, n = int(places[0]), processed.tokens
        self.append_text(tokens[:first])
        view = ImageView(processed.key, image, frame, len(self))
        positions, next_position = self._image_spec.positions(
            self.next_position, processed.grid_thw)
        self._append(
            tokens[first : first + n],
            np.zeros(n, bool),
            positions,
            np.zeros(n, np.float32),
            np.arange(self._feature_count, self._feature_count + n, dtype=np.int32),
        )
        self.next_position = next_position
        self._feature_count += n
        self.images.append(view)
        self.processed.append(processed)
        self.append_text(tokens[first + n :])

    def _append(self, tokens, mask, positions, logprobs, image_index) -> None:
        self._tokens.append(tokens)
        self._masks.append(mask)
        self._positions.append(positions)
        self._logprobs.append(np.asarray(logprobs, np.float32))
        self._image_index.append(image_index)
        self._length += len(tokens)

    def tail(self, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns tokens `[n]`, positions `[3, n]`, image rows `[n]` from `start` on."""
        # Only what is needed is put together: it is asked for at every call to decode.
        first, length = len(self._tokens), self._length
        while first and length > start:
            first -= 1
            length -= len(self._tokens[first])
        skip = start - length
        if first == len(self._tokens):
            return (np.zeros(0, np.int32), np.zeros((3, 0), np.int32), np.zeros(0, np.int32))
        return (
            np.concatenate(self._tokens[first:])[skip:],
            np.concatenate(self._positions[first:], axis=1)[:, skip:],
            np.concatenate(self._image_index[first:])[skip:],
        )

    @property
    def last_token(self) -> int | None:
        """Id of the token that was appended last."""
        return int(self._tokens[-1][-1]) if self._tokens else None

    def finish(self) -> Trajectory:
        """Returns the trajectory of this episode."""
        answers = [t.action.text for t in self.turns if t.action.kind == 'answer']
        return Trajectory(
            question=self.question,
            prompt=self.prompt,
            tokens=np.concatenate(self._tokens),
            loss_mask=np.concatenate(self._masks),
            position_ids=np.concatenate(self._positions, axis=1),
            logprobs=np.concatenate(self._logprobs),
            image_index=np.concatenate(self._image_index),
            images=list(self.images),
            processed=list(self.processed),
            turns=list(self.turns),
            answer=answers[-1] if answers else None,
            finished=bool(answers),
            truncated=self.truncated,
            retrieved=list(self.retrieved),
        )
