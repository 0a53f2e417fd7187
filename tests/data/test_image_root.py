"""Images of conversations are found relative to their file or to a folder above it."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from vrag_jax.data.datasets import read_conversations, write_conversations
from vrag_jax.data.image_root import find_image_root
from vrag_jax.data.records import Conversation, Message, load_sharegpt

TURNS = (Message('user', '<image>'), Message('assistant', 'a'))
NAME = './data/img/x.jpg'


def record(*images):
    first = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]
    shown = [{'role': 'user', 'content': '<image>'}, {'role': 'assistant', 'content': 'a'}]
    return {'messages': first + shown * len(images), 'images': list(images)}


@pytest.fixture
def repository(tmp_path):
    """A repository whose conversations name images from its root."""
    (tmp_path / 'repo' / 'data' / 'img').mkdir(parents=True)
    (tmp_path / 'repo' / 'data' / 'sft').mkdir()
    Image.new('RGB', (28, 28)).save(tmp_path / 'repo' / NAME)
    file = tmp_path / 'repo' / 'data' / 'sft' / 'sft.json'
    file.write_text(json.dumps([record(), record(NAME)]))
    return tmp_path / 'repo'


def test_the_folder_of_the_file_comes_first_then_those_above(repository):
    file = repository / 'data' / 'sft' / 'sft.json'
    conversations = load_sharegpt(file)
    assert find_image_root(file, conversations) == repository
    beside = file.parent / NAME
    beside.parent.mkdir(parents=True)
    Image.new('RGB', (28, 28)).save(beside)
    assert find_image_root(file, conversations) == file.parent
    assert find_image_root(file, conversations, str(repository)) == repository


def test_a_relative_file_is_looked_for_above_the_working_directory(repository, monkeypatch):
    monkeypatch.chdir(repository / 'data' / 'sft')
    assert find_image_root('sft.json', load_sharegpt('sft.json')) == repository


def test_absolute_names_need_no_root(tmp_path, repository):
    image = repository.joinpath('data', 'img', 'x.jpg')
    assert find_image_root(tmp_path / 's.json', [Conversation(TURNS, (str(image),))]) == tmp_path


def test_conversations_without_images_need_none(tmp_path):
    assert find_image_root(tmp_path / 's.json', [Conversation(TURNS, ())]) == tmp_path


@pytest.mark.parametrize('given, place', [('', 'or a folder above it'), ('elsewhere', 'elsewhere')])
def test_an_image_that_is_nowhere_is_named_with_the_flag(tmp_path, given, place):
    with pytest.raises(FileNotFoundError) as error:
        find_image_root(tmp_path / 's.json', [Conversation(TURNS, ('none.jpg',))], given)
    for text in ('s.json, record 0: there is no image none.jpg in ', place,
                 '--config.data.image_root=DIR'):
        assert text in str(error.value)


def test_a_dataset_brings_its_images(repository, tmp_path):
    directory = write_conversations(
        {'train': repository / 'data' / 'sft' / 'sft.json'}, tmp_path / 'out')
    conversations = read_conversations(directory)
    assert conversations[1].encoded[0] == (repository / NAME).read_bytes()
    assert find_image_root(directory, conversations) == directory.parent
    with pytest.raises(ValueError, match='brings its images; leave image_root empty'):
        find_image_root(directory, conversations, str(repository))


def test_the_command_takes_the_root(repository, tmp_path):
    file = tmp_path / 'sft.json'
    file.write_text(json.dumps([record('img/x.jpg')]))
    prepare = [sys.executable, '-m', 'vrag_jax.data.prepare', f'--conversations={file}',
               f'--out={tmp_path / "out"}']
    failed = subprocess.run(prepare, capture_output=True, text=True)
    assert failed.returncode == 1 and '--image_root=DIR' in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    done = subprocess.run([*prepare, f'--image_root={repository / "data"}'], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
