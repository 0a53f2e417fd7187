"""Tokens of pages and queries as visual embedders read them, with their positions."""

import dataclasses
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.mrope import rope_index, text_positions

IMAGE = '<|image_pad|>'
QUERY = '{query}'
POSITIONS = ('mrope', 'sequential')


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What stands around a page's image and a query.

    Attributes:
      page: holds `<|image_pad|>` once, in whose place the image's tokens go.
      query: holds `{query}` once.
      positions: of an image's tokens: 'mrope', by row and column, as they are trained; or
        'sequential', like text, as transformers' `ColQwen2ForRetrieval` runs them since 5.2.
    """

    page: str
    query: str
    positions: str

    def __post_init__(self):
        for name, mark in (('page', IMAGE), ('query', QUERY)):
            if getattr(self, name).count(mark) != 1:
                raise ValueError(f'{name}_prompt must hold {mark!r} once, got '
                                 f'{getattr(self, name)!r}')
        if self.positions not in POSITIONS:
            raise ValueError(f'positions must be one of {POSITIONS}, got {self.positions!r}')


_COL_PAGE = ('<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.'
             '<|im_end|><|endoftext|>')
_AUGMENTATION = '<|endoftext|>' * 10
_CHAT = ('<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}'
         '<|im_end|>\n<|im_start|>assistant\n')
# What ColQwen2 and ColQwen2.5 are trained with, by colpali-engine (0.3.4 to 0.3.12). Checkpoints
# in transformers' format are the same weights under other names, and are read alike: its releases
# up to 5.1 do so; those from 5.2 have lost the positions, and those from 5.15 put a line break
# behind the query. CHAT is of Qwen2.5-VL embedders that read a chat up to the assistant's turn.
COLQWEN = Prompts(_COL_PAGE, f'Query: {QUERY}{_AUGMENTATION}', 'mrope')
CHAT = Prompts(_CHAT.format(f'<|vision_start|>{IMAGE}<|vision_end|>'), _CHAT.format(QUERY),
               'mrope')


class PromptEncoder:
    """Turns pages and queries into token ids and positions.

    A query that contains a special token's name is plain text.

    Args:
      tokenizer: a HF tokenizer with a `backend_tokenizer`.
      prompts: what stands around them.
      config: gives the image token and the merge size.

    Attributes:
      before_image: tokens of a page before those of its image.

    Raises:
      ValueError: if the tokenizer does not know the image token as the config does.
    """

    def __init__(self, tokenizer: Any, prompts: Prompts, config: ModelConfig):
        serialized = tokenizer.backend_tokenizer.to_str()
        self._template = Tokenizer.from_str(serialized)
        self._plain = Tokenizer.from_str(serialized)
        self._plain.encode_special_tokens = True
        for encoder in (self._template, self._plain):
            encoder.no_truncation()
            encoder.no_padding()
        self._config, self._positions = config, prompts.positions
        if self._template.token_to_id(IMAGE) != config.image_token_id:
            raise ValueError(f'{IMAGE} is id {self._template.token_to_id(IMAGE)} of the '
                             f'tokenizer, but {config.image_token_id} of the model')
        ids = self._ids(prompts.page)
        place = ids.index(config.image_token_id)
        self._page = ids[:place], ids[place + 1:]
        self.before_image = place
        # Words next to the query may join with it to tokens; special tokens cannot.
        special = '|'.join(re.escape(token.content) for token in
                           self._template.get_added_tokens_decoder().values() if token.special)
        before, after = prompts.query.split(QUERY)
        marks = [0, *(m.end() for m in re.finditer(special, before))]
        found = re.search(special, after)
        end = found.start() if found else len(after)
        self._query_ends = self._ids(before[: marks[-1]]), self._ids(after[end:])
        self._query_words = before[marks[-1]:], after[:end]

    def page(self, image: ProcessedImage) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[T]` int32 ids and `[3, T]` int32 positions of a page."""
        before, after = self._page
        ids = np.array([*before, *[self._config.image_token_id] * image.tokens, *after], np.int32)
        if self._positions == 'mrope':
            return ids, rope_index(ids, [image.grid_thw], self._config)[0]
        return ids, text_positions(0, len(ids))

    def query(self, query: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[T]` int32 ids and `[3, T]` int32 positions of a query."""
        (first, last), (before, after) = self._query_ends, self._query_words
        words = self._plain.encode(f'{before}{query}{after}', add_special_tokens=False).ids
        ids = np.array([*first, *words, *last], np.int32)
        return ids, text_positions(0, len(ids))

    def _ids(self, text: str) -> list[int]:
        return self._template.encode(text, add_special_tokens=False).ids
