"""Small and real things to test the data room with, each made once."""

import base64
import dataclasses
import importlib.util
import os
from pathlib import Path

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.data.pageworld.files import build
from vrag_jax.data.tiny_tokenizer import train_tiny_tokenizer
from vrag_jax.models.common.tokenizer import as_chat_tokenizer, byte_level_tokenizer

TEXTS = ['<think> A K M. K top left.</think><bbox>[12,34,56,78]</bbox>',
         '<think>472.</think><answer>472</answer>', '<search> velora market</search>']


@pytest.fixture(scope='session')
def small_config():
    return dataclasses.replace(
        PageWorldConfig(), train_documents=6, validation_documents=2, test_documents=3,
        train_questions=40, validation_questions=10, test_questions=20)


@pytest.fixture(scope='session')
def small_world(small_config, tmp_path_factory):
    return build(small_config, tmp_path_factory.mktemp('data') / 'world')


@pytest.fixture(scope='session')
def tiny_tokenizer(small_world, tmp_path_factory):
    texts = [q.query for questions in small_world.questions.values() for q in questions]
    return train_tiny_tokenizer(texts + TEXTS, 400, tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='session')
def real_pages():
    shared = os.environ.get('VRAG_SHARED', Path(__file__).parents[2] / '..' / 'shared')
    folder = Path(shared) / 'real_pages'
    if not folder.is_dir():
        pytest.skip(f'needs {folder} (set VRAG_SHARED)')
    return folder


@pytest.fixture(scope='session')
def qwen_ranks():
    """Rank of each of Qwen's 151,643 byte strings, from a file of the package dashscope."""
    spec = importlib.util.find_spec('dashscope')
    if spec is None:
        pytest.skip('needs the package dashscope, which ships qwen.tiktoken')
    lines = (Path(spec.origin).parent / 'resources' / 'qwen.tiktoken').read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


@pytest.fixture(scope='session')
def qwen_tokenizer(qwen_ranks):
    """HF tokenizer with Qwen's vocabulary, merges and special tokens."""
    characters = bytes_to_unicode()
    names = {token: ''.join(map(characters.__getitem__, token)) for token in qwen_ranks}
    merges = [tuple(names[part] for part in last_merge(token, qwen_ranks))
              for token in qwen_ranks if len(token) > 1]
    vocab = {names[token]: rank for token, rank in qwen_ranks.items()}
    return as_chat_tokenizer(byte_level_tokenizer(vocab, merges))


def last_merge(token, ranks):
    """Returns the two parts whose merge makes a token: BPE on its bytes up to two parts."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        i = pairs.index(min(pairs))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts
