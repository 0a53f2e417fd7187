"""Tokenizers of policies: read from a checkpoint, written as one, and the bytes of their ids."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

# Qwen2.5-VL's special tokens, in the order of their ids.
SPECIAL_TOKENS = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>',
    '<|box_start|>', '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>',
    '<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>')
# ChatML with Qwen2.5-VL's treatment of images; without its default system turn,
# which would only make every sequence of the tiny policy longer.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def byte_level_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Returns a byte-level BPE with Qwen2's normalisation and splitting rules."""
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def as_chat_tokenizer(
    tokenizer: Tokenizer, tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Adds Qwen's special tokens, ordinary tokens after them, and the chat template."""
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token='<|im_end|>', pad_token='<|endoftext|>',
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


def save_chat_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes a tokenizer as Qwen2.5-VL's is published: transformers 4.49 and newer read it.

    What transformers 5 writes itself crashes version 4, which knows neither its class nor
    its lists of special tokens.

    Args:
      tokenizer: made by `as_chat_tokenizer`.
      directory: to write.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend, template = tokenizer.backend_tokenizer, tokenizer.chat_template
    backend.save(str(directory / 'tokenizer.json'))
    added = {str(index): {
        'content': token.content, 'lstrip': token.lstrip, 'normalized': token.normalized,
        'rstrip': token.rstrip, 'single_word': token.single_word, 'special': token.special}
        for index, token in sorted(backend.get_added_tokens_decoder().items())}
    files: dict[str, dict[str, Any]] = {
        'tokenizer_config.json': {
            'tokenizer_class': 'Qwen2Tokenizer', 'add_bos_token': False,
            'add_prefix_space': False, 'added_tokens_decoder': added,
            'additional_special_tokens': [
                token['content'] for token in added.values()
                if token['special'] and token['content'] != tokenizer.pad_token],
            'bos_token': None, 'chat_template': template,
            'clean_up_tokenization_spaces': False, 'eos_token': tokenizer.eos_token,
            'errors': 'replace', 'model_max_length': 131072, 'pad_token': tokenizer.pad_token,
            'split_special_tokens': False, 'unk_token': None},
        # Where processors of transformers 4 look for it.
        'chat_template.json': {'chat_template': template},
    }
    for name, fields in files.items():
        (directory / name).write_text(json.dumps(fields, indent=2) + '\n', 'utf-8')


def load_tokenizer(path: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a HF directory on this machine, with its chat template.

    Raises:
      FileNotFoundError: if the directory holds no tokenizer.
      ValueError: if a file of the chat template cannot be read.
    """
    folder = Path(path)
    if not any((folder / name).is_file() for name in ('tokenizer.json', 'vocab.json')):
        raise FileNotFoundError(f'{folder}: holds no tokenizer.json or vocab.json')
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    template = folder / 'chat_template.json'
    if not tokenizer.chat_template and template.is_file():
        # Where processors keep it; tokenizers do not look there.
        try:
            tokenizer.chat_template = json.loads(template.read_text('utf-8'))['chat_template']
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{template}: no chat template: {error!r}') from error
    return tokenizer


def token_bytes(tokenizer: Any, vocab_size: int | None = None) -> list[bytes]:
    """Returns the bytes that each id of a byte-level BPE tokenizer stands for.

    Args:
      tokenizer: a HF tokenizer with a `backend_tokenizer`.
      vocab_size: length of the result, at least that of the tokenizer; models
        often have more ids than their tokenizer.

    Returns:
      For each id its bytes; b'' for special tokens and ids without a token.

    Raises:
      ValueError: if `vocab_size` is too small, or a token is not byte-level.
    """
    backend = tokenizer.backend_tokenizer
    vocab = backend.get_vocab(with_added_tokens=True)
    size = max(vocab.values()) + 1
    if vocab_size is not None and vocab_size < size:
        raise ValueError(f'vocab_size is {vocab_size}, but the tokenizer has ids up to {size - 1}')
    values = _byte_values()
    table = [b''] * (vocab_size or size)
    added = backend.get_added_tokens_decoder()
    for token, index in vocab.items():
        if index in added:
            table[index] = b'' if added[index].special else added[index].content.encode()
            continue
        try:
            table[index] = bytes(values[character] for character in token)
        except KeyError as error:
            raise ValueError(f'token {token!r} (id {index}) is not byte-level BPE') from error
    return table


def ids_without_text(tokenizer: Any, vocab_size: int, ends: Collection[int]) -> tuple[int, ...]:
    """Returns the ids that a policy must not sample: they neither write text nor end a turn.

    These are the special tokens, an image's placeholders among them, and the ids that a
    model has beyond its tokenizer's.

    Args:
      tokenizer: a HF tokenizer with a `backend_tokenizer`.
      vocab_size: ids of the model.
      ends: ids that end a turn.

    Raises:
      ValueError: as `token_bytes`.
    """
    table = token_bytes(tokenizer, vocab_size)
    return tuple(i for i, text in enumerate(table) if not text and i not in ends)


def _byte_values() -> dict[str, int]:
    """Returns the byte behind each character of the byte-level alphabet.

    Printable bytes stand for themselves, the others for characters from 256 on,
    as in GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    values = {chr(byte): byte for byte in printable}
    values |= {chr(256 + i): byte for i, byte in enumerate(others)}
    return values
