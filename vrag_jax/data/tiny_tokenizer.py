"""The tiny policy's own tokenizer, trained on what it is to read and write."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase

from vrag_jax.actions.grammar import tag_tokens
from vrag_jax.actions.registry import DEFAULT_ACTIONS
from vrag_jax.models.common.tokenizer import (
    SPECIAL_TOKENS,
    as_chat_tokenizer,
    byte_level_tokenizer,
    load_tokenizer,
    save_chat_tokenizer,
)

# A pair of tokens that is rarer than one in so many texts is not merged: whole names of
# documents would become tokens, and names of other documents would be written otherwise.
_TEXTS_A_MERGE = 225
LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
ROLES = ('user', 'assistant')


def train_tiny_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: str | os.PathLike,
    phrases: Sequence[str] = (), tags: Sequence[str] = DEFAULT_ACTIONS,
) -> PreTrainedTokenizerBase:
    """Trains a small tokenizer with the published policies' rules and saves it as a HF directory.

    Digits stay single tokens (by these rules); a single capital after a space and
    the names of the roles become tokens whether or not the texts hold them.

    Args:
      texts: what the policy is to read and write.
      vocab_size: most ids in all, with special tokens and action tags.
      out_dir: folder to write; `load_tokenizer` and `AutoTokenizer` read it.
      phrases: what becomes one token although it is several words, such as the
        names of places on a page; with a space before it, it is another token.
      tags: of the actions; they and `<think>` become one token each.

    Returns:
      The tokenizer, as read back from the folder.

    Raises:
      ValueError: if `vocab_size` has no room for bytes, tags and letters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Tags make sequences short as one token each; they are not special, so that they are decoded.
    ordinary = [*tag_tokens(tags), *phrases, *(f' {phrase}' for phrase in phrases)]
    added = len(SPECIAL_TOKENS) + len(ordinary)
    if vocab_size < len(alphabet) + added + len(LETTERS):
        raise ValueError(f'vocab_size must be at least {len(alphabet) + added + len(LETTERS)}, '
                         f'got {vocab_size}')
    texts = list(texts)
    tokenizer = byte_level_tokenizer({}, [])
    # With every text, so that these become tokens before all but the commonest words.
    always = ' '.join(['', *LETTERS]) + '\n' + '\n'.join(ROLES)
    tokenizer.train_from_iterator((text + always for text in texts), BpeTrainer(
        vocab_size=vocab_size - added, min_frequency=len(texts) // _TEXTS_A_MERGE,
        initial_alphabet=alphabet, show_progress=False))
    missing = [f' {letter}' for letter in LETTERS if len(tokenizer.encode(f' {letter}').ids) > 1]
    if missing:
        raise ValueError(f'vocab_size {vocab_size} has no room for {missing}')
    save_chat_tokenizer(as_chat_tokenizer(tokenizer, ordinary), Path(out_dir))
    return load_tokenizer(out_dir)
