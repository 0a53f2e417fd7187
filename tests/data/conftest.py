"""A small PageWorld and its tokenizer, made once for all tests of the data room."""

import dataclasses
import os
from pathlib import Path

import pytest

from vrag_jax.data.pageworld.build import build
from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.data.tokenizer import train_tiny_tokenizer

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
