"""Token ids of prompts and observations, by the tokenizer's own chat template."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from vrag_jax.data.prompt import Prompt

# Words that no template contains; they mark the places of texts in a rendering.
_MARKS = ('firstmark', 'secondmark', 'thirdmark', 'fourthmark', 'fifthmark')


@dataclasses.dataclass(frozen=True)
class _Delimiters:
    """What the template writes around texts.

    Attributes:
      opening: before the text of the first user turn.
      generation: between a user's text and the assistant's.
      closing: between an assistant's text and the user's.
      image: an image between two texts of the user.
    """

    opening: str
    generation: str
    closing: str
    image: str


class ChatFormat:
    """Turns questions and observations into token ids.

    A conversation grows by appending: the prompt, what the policy samples, an
    observation, and so on. Together they are the ids of the chat template on
    the whole conversation. Texts are encoded apart from the template, so a
    question that contains a special token's name is plain text. Nothing is cut off a
    text: a template writes blanks at its ends as they are.

    Args:
      tokenizer: a HF tokenizer with a chat template and a `backend_tokenizer`.
      prompt: what a question is asked with.
      image_token: the placeholder of one image feature.

    Raises:
      ValueError: if the template or the token does not fit.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt = Prompt(),  # noqa: B008 (immutable)
                 image_token: str = '<|image_pad|>'):
        self.tokenizer = tokenizer
        self.prompt = prompt
        # Copies: whether special tokens are recognised is a state of the object.
        serialized = tokenizer.backend_tokenizer.to_str()
        self._template_encoder = Tokenizer.from_str(serialized)
        self._text_encoder = Tokenizer.from_str(serialized)
        self._text_encoder.encode_special_tokens = True
        delimiters = _delimiters(tokenizer, prompt.system)
        self._opening = self._heading(delimiters.opening)
        self._generation = self._template_ids(delimiters.generation)
        closing, closing_rest = self._heading(delimiters.closing)
        added = self._template_encoder.get_added_tokens_decoder()
        if not closing or closing[0] not in added or not added[closing[0]].special:
            raise ValueError("the chat template does not close the assistant's turn with a "
                             f'special token, but with {delimiters.closing!r}')
        self.end_of_turn_id: int = closing[0]
        self._closing = closing[1:], closing_rest
        image_id = self._template_encoder.token_to_id(image_token)
        image = self._template_ids(delimiters.image)
        if image_id is None or image.count(image_id) != 1:
            raise ValueError(f'image_token {image_token!r} does not stand once in how the chat '
                             f'template writes an image: {delimiters.image!r}')
        self.image_token_id: int = image_id
        place = image.index(image_id)
        self._vision_start, self._vision_end = image[:place], image[place + 1:]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; names of special tokens in it are plain text."""
        return self._text_encoder.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of sampled ids, without special tokens."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def with_prompt(self, prompt: Prompt) -> 'ChatFormat':
        """Returns the same format with another prompt."""
        other = copy.copy(self)  # Nothing but the opening depends on the prompt.
        other.prompt = prompt
        other._opening = self._heading(_delimiters(self.tokenizer, prompt.system).opening)
        return other

    def prompt_text(self, question: str) -> str:
        """Returns the text of the question's turn."""
        return self.prompt.fill(question)

    def prompt_ids(self, question: str) -> list[int]:
        """Returns the ids from the start up to where the policy begins to write."""
        return self.opening_ids(self.prompt_text(question))

    def opening_ids(self, text: str) -> list[int]:
        """Returns what `prompt_ids` does, of the whole text of the first turn."""
        return self._after(self._opening, text) + self._generation

    def reply_ids(self, text: str) -> list[int]:
        """Returns a whole turn of the policy: its text and the end of the turn."""
        return [*self.encode(text), self.end_of_turn_id]

    def observation_ids(self, text_before: str, image_tokens: int | None = None,
                        text_after: str = '', ended: bool = False) -> list[int]:
        """Returns the ids between two turns of the policy.

        They close the policy's turn, give the user's turn with the observation,
        and open the policy's next turn.

        Args:
          text_before: text before the image, or the whole text without one.
          image_tokens: features of the image, None without an image.
          text_after: text after the image.
          ended: whether the policy's turn ends with `end_of_turn_id` already.

        Raises:
          ValueError: if the image has no features.
        """
        if image_tokens is not None and image_tokens < 1:
            raise ValueError(f'an image has at least one feature, got {image_tokens}')
        ids = [] if ended else [self.end_of_turn_id]
        if image_tokens is None:
            ids += self._after(self._closing, text_before + text_after)
        else:
            ids += self._after(self._closing, text_before) + self._vision_start
            ids += [self.image_token_id] * image_tokens
            ids += self._vision_end + self.encode(text_after)
        return ids + self._generation

    def _heading(self, text: str) -> tuple[list[int], str]:
        """Splits what the template writes before a text: ids, and what is encoded with it.

        Behind the last special token stands a role and a line's end, which makes one token
        with those that the text may begin with.
        """
        names = sorted((token.content for token in
                        self._template_encoder.get_added_tokens_decoder().values()
                        if token.special), key=len)
        cut = max((text.rfind(name) + len(name) for name in names if name in text), default=0)
        return self._template_ids(text[:cut]), text[cut:]

    def _after(self, heading: tuple[list[int], str], text: str) -> list[int]:
        return heading[0] + self.encode(heading[1] + text)

    def _template_ids(self, text: str) -> list[int]:
        return self._template_encoder.encode(text, add_special_tokens=False).ids


def _delimiters(tokenizer: Any, system: str | None) -> _Delimiters:
    """Renders a conversation of marks and takes it apart at them."""
    if not getattr(tokenizer, 'chat_template', None):
        raise ValueError(
            'the tokenizer has no chat template: put the chat_template.jinja or '
            'chat_template.json of its model beside it, or `chat_template` into its '
            'tokenizer_config.json')
    first, second, third, fourth, fifth = _MARKS
    messages: list[dict[str, Any]] = [
        {'role': 'user', 'content': first},
        {'role': 'assistant', 'content': second},
        {'role': 'user', 'content': third},
        {'role': 'assistant', 'content': fourth},
    ]
    if system is not None:
        messages.insert(0, {'role': 'system', 'content': system})
    texts = _split(_render(tokenizer, messages), _MARKS[:4])
    opening, generation, closing, again, _ = texts
    prompt = _render(tokenizer, messages[:-3], add_generation_prompt=True)
    if prompt != f'{opening}{first}{generation}' or again != generation:
        raise ValueError('the chat template opens an assistant turn differently when it is '
                         'generated, first, or later; a conversation cannot grow by appending')
    messages[-2] = {'role': 'user', 'content': [
        {'type': 'text', 'text': third}, {'type': 'image'}, {'type': 'text', 'text': fifth}]}
    image = _split(_render(tokenizer, messages), (first, second, third, fifth, fourth))[3]
    return _Delimiters(opening, generation, closing, image)


def _render(tokenizer: Any, messages: list[dict[str, Any]],
            add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """Splits a rendering at marks that must stand in it once each, in order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(f'the chat template does not write each text once, in order '
                             f'(looking for {mark!r})')
        pieces.append(before)
    return [*pieces, text]
