"""SFT conversations as token sequences."""

import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from vrag_jax.actions.observation import IMAGE_MARK
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.mapped import MappedSequence
from vrag_jax.data.records import Conversation, Message, Question, split_system
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ImagePreprocessor
from vrag_jax.perception.image_files import load_image
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
) -> Sequence[TokenSequence]:
    """Tokenises conversations as the policy will meet them; its turns are trained on.

    Token ids are those of the chat template on the whole conversation. A turn of the policy
    is trained on from its first token to the one that ends it.

    Args:
      conversations: alternating user and assistant messages after an optional system
        message, a user's text with at most one `<image>`.
      image_root: what relative image files are relative to, of conversations that
        do not bring their images.
      chat: tokenizer and turn delimiters. Of its prompt only the system turn is taken, by
        conversations without one; the first message is a whole prompt already.
      preprocess: images to patches.
      model_config: sizes and special ids.
      limits: bounds of an image's area as the encoder sees it.
      max_length: a conversation is cut after the last turn that fits.

    Returns:
      One sequence a conversation. It is made whenever it is asked for: the patches
      of all images of a large dataset would not fit into memory.

    Raises:
      ValueError: if the messages do not alternate, a message has two images or the
        first turn does not fit.
      FileNotFoundError: if an image is missing.
    """
    @functools.lru_cache(maxsize=64)
    def chat_of(system: str) -> ChatFormat:
        return chat.with_prompt(dataclasses.replace(chat.prompt, system=system))

    def with_system(conversation: Conversation) -> tuple[ChatFormat, tuple[Message, ...]]:
        system, messages = split_system(conversation)
        return (chat if system is None else chat_of(system)), messages

    for number, conversation in enumerate(conversations):
        where = f'conversation {number}'
        _check_turns(conversation, where)
        own, messages = with_system(conversation)
        question, answer = messages[:2]
        first = len(own.opening_ids(question.content)) + len(own.reply_ids(answer.content))
        if first > max_length:
            raise ValueError(f'{where}: the first turn alone is longer than {max_length}')
        for name in () if conversation.encoded else conversation.images:
            if not (image_root / name).is_file():
                raise FileNotFoundError(f'{where}: no image {image_root / name}')

    def make(number: int, conversation: Conversation) -> TokenSequence:
        episode = Episode(Question(uid=str(number), query='', answer=''), '', model_config)
        own, messages = with_system(conversation)
        images = _opened(conversation, image_root)
        _fill(episode, messages, images, own, preprocess, limits, max_length)
        return episode.finish().sequence()

    return MappedSequence(conversations, make)


def _check_turns(conversation: Conversation, where: str) -> None:
    """Raises ValueError for messages that no episode has."""
    messages = split_system(conversation)[1]
    roles = [message.role for message in messages]
    if len(roles) < 2 or any(
        role != ('user', 'assistant')[i % 2] for i, role in enumerate(roles)
    ):
        raise ValueError(f'{where}: roles must alternate, user first, got {roles}')
    for index, message in enumerate(messages[::2]):
        if message.content.count(IMAGE_MARK) > min(index, 1):
            raise ValueError(f'{where}, message {2 * index}: expected at most one {IMAGE_MARK}, '
                             f'and none in the question')


def _fill(episode, messages, images, chat, preprocess, limits, max_length) -> None:
    for index in range(0, len(messages) - 1, 2):
        user, assistant = messages[index : index + 2]
        before, mark, after = user.content.partition(IMAGE_MARK)
        shown = None
        if mark:
            name, image = next(images)
            view = show_page(image, name, limits)
            shown = (*view, preprocess([view[0]])[0])
        if index == 0:
            ids = chat.opening_ids(user.content)
        else:
            tokens = shown[2].tokens if shown else None
            ids = chat.observation_ids(before, tokens, after, ended=True)
        answer = chat.reply_ids(assistant.content)
        if len(episode) + len(ids) + len(answer) > max_length:
            return
        episode.append_observation(ids, shown)
        episode.append_text(answer, sampled=True)


def _opened(conversation: Conversation, root: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yields the images of a conversation by name, each decoded when it is asked for."""
    for index, name in enumerate(conversation.images):
        source = io.BytesIO(conversation.encoded[index]) if conversation.encoded else root / name
        yield str(root / name), load_image(source)
