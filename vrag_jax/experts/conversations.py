"""SFT conversations from files as token sequences."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.records import Conversation, Question
from vrag_jax.data.sequences import ImagePreprocessor, TokenSequence
from vrag_jax.models.config import ModelConfig
from vrag_jax.perception.image_ops import PixelLimits, show_page
from vrag_jax.rollout.episode import Episode


def conversation_sequences(
    conversations: Sequence[Conversation],
    image_root: Path,
    chat: ChatFormat,
    preprocess: ImagePreprocessor,
    model_config: ModelConfig,
    limits: PixelLimits,
    max_length: int,
) -> list[TokenSequence]:
    """Tokenises conversations as the policy will meet them; its turns are trained on.

    Args:
      conversations: alternating user and assistant messages, a user's text with
        at most one `<image>`.
      image_root: what relative image files are relative to.
      chat: tokenizer and turn delimiters; the first message is the whole prompt.
      preprocess: images to patches.
      model_config: sizes and special ids.
      limits: bounds of an image's area as the encoder sees it.
      max_length: a conversation is cut after the last turn that fits.

    Returns:
      One sequence a conversation.

    Raises:
      ValueError: if the messages do not alternate or a message has two images.
      FileNotFoundError: if an image is missing.
    """
    out = []
    for number, conversation in enumerate(conversations):
        episode = Episode(
            Question(uid=str(number), query='', answer=''), '',
            model_config.image_token_id, model_config.vision.spatial_merge_size)
        _fill(episode, conversation, image_root, chat, preprocess, limits, max_length,
              f'conversation {number}')
        out.append(episode.finish().sequence())
    return out


def _fill(episode, conversation, image_root, chat, preprocess, limits, max_length, where) -> None:
    roles = [message.role for message in conversation.messages]
    if len(roles) < 2 or any(
        role != ('user', 'assistant')[i % 2] for i, role in enumerate(roles)
    ):
        raise ValueError(f'{where}: roles must alternate, user first, got {roles}')
    images = iter(conversation.images)
    for index in range(0, len(roles) - 1, 2):
        user, assistant = conversation.messages[index : index + 2]
        parts = re.split('<image>', user.content)
        if len(parts) > 2 or (index == 0 and len(parts) > 1):
            raise ValueError(f'{where}, message {index}: expected at most one <image>, and none '
                             f'in the question')
        shown = None
        if len(parts) == 2:
            file = image_root / next(images)
            if not file.is_file():
                raise FileNotFoundError(f'{where}: no image {file}')
            with Image.open(file) as image:
                view = show_page(image, str(file), limits)
            shown = (*view, preprocess([view[0]])[0])
        if index == 0:
            ids = chat.prompt_ids(user.content)
        else:
            ids = chat.observation_ids(
                parts[0], shown[2].tokens if shown else None, parts[1] if shown else '')
        answer = chat.encode(assistant.content)
        if len(episode) + len(ids) + len(answer) > max_length:
            if index == 0:
                raise ValueError(f'{where}: the first turn alone is longer than {max_length}')
            return
        episode.append_observation(ids, shown)
        episode.append_text(answer, sampled=True)
