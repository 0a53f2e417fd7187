"""What is read from a TFDS dataset equals what is read from the files that it was made of."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.config import ConfigError
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.data import datasets, prepare
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.datasets import (
    check_conversations,
    check_questions,
    read_conversations,
    read_questions,
    write_conversations,
    write_questions,
)
from vrag_jax.data.records import (
    Evidence,
    Question,
    load_questions,
    load_sharegpt,
    save_questions,
)
from vrag_jax.experts.conversations import conversation_sequences
from vrag_jax.models.common.images import ImagePreprocessor
from vrag_jax.models.families import image_spec, preset
from vrag_jax.perception.image_ops import PixelLimits
from vrag_jax.run.run_config import DataConfig, PolicyConfig, RunConfig
from vrag_jax.tasks.registry import check
from vrag_jax.training.phase_configs import SftConfig

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = [
    Question('1', 'q', 'a'),
    # Corners that single precision would round, text that ends in a zero byte.
    Question('2', '问?\0', '答', ('x', ''), 'd.pdf', (1, 2), ('d_1',), 'Text, Table', 'Multi-Hop',
             'zh', (Evidence('d_1', (0, 1 / 3, 2, 0.7)), Evidence('d_2', (1, 2, 2**40 + 1, 3e9))),
             {'kind': 'text', 'n': 1e300, 'deep': {'list': [1, None, {'x': True}]}}),
    *[Question(f'u{i}', f'query {i}', str(i)) for i in range(30)],
]
# Its page ids follow from the file's name.
BARE = {'uid': 7, 'query': 'why?', 'reference_answer': 'because', 'answer_aliases': 'since',
        'meta_info': {'file_name': 'a.b.pdf', 'reference_page': [2, 7], 'source_type': ['Text']}}


def write_json(path, value):
    path.write_text(json.dumps(value), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Question files, conversations and their images."""
    folder = tmp_path_factory.mktemp('json')
    save_questions(folder / 'train.json', QUESTIONS)
    write_json(folder / 'test.json', [BARE])
    (folder / 'images').mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), np.uint8)
    names = ['images/a.png', 'images/b.jpg', 'images/c.webp']
    for name, pixels in zip(names, noise, strict=True):
        Image.fromarray(pixels).save(folder / name)
    with open(folder / names[1], 'ab') as file:
        file.write(b'\0\0')  # As some cameras do; not to be lost.
    turns = [f'<think>{i}</think><search>page</search>' for i in range(3)]
    shown = [[], names[:1], names, names[1:]]
    write_json(folder / 'sft.json', [
        {'messages': [
            {'role': 'user', 'content': f'question {i}'},
            *[{'role': role, 'content': text} for turn, _ in zip(turns, images, strict=False)
              for role, text in (('assistant', turn), ('user', 'before <image> after'))],
            {'role': 'assistant', 'content': '<think>it</think><answer>yes</answer>'}],
         'images': images} for i, images in enumerate(shown)])
    return folder


@pytest.fixture(scope='module')
def prepared_questions(folder):
    return write_questions(
        {'train': folder / 'train.json', 'test': folder / 'test.json'}, folder / 'out')


@pytest.fixture(scope='module')
def prepared_conversations(folder):
    return write_conversations({'train': folder / 'sft.json'}, folder / 'out')


def test_questions_come_back(prepared_questions, folder):
    assert prepared_questions == folder / 'out' / 'vrag_questions' / '1.0.0'
    assert read_questions(f'{prepared_questions}:train') == QUESTIONS
    assert read_questions(f'{prepared_questions}:test') == load_questions(folder / 'test.json')
    assert read_questions(folder / 'train.json') == QUESTIONS


def test_numbers_keep_their_types(prepared_questions):
    question = read_questions(f'{prepared_questions}:train')[1]
    assert repr(question) == repr(QUESTIONS[1])


def test_slices_of_a_split_are_read(prepared_questions):
    assert read_questions(f'{prepared_questions}:train[2:5]') == QUESTIONS[2:5]
    assert read_questions(f'{prepared_questions}:train[50%:]') == QUESTIONS[16:]


def test_page_ids_are_those_of_the_pages_at_reading(prepared_questions, folder):
    store = PageStore(folder, [Page('x', 'a.b', 7, 'x.jpg', 9, 9)])
    question, = read_questions(f'{prepared_questions}:test', store)
    assert question.page_ids == ('x',)
    assert [question] == load_questions(folder / 'test.json', store)


def test_conversations_come_back_with_the_bytes_of_their_images(prepared_conversations, folder):
    # The only split needs no name.
    conversations = read_conversations(prepared_conversations)
    files = load_sharegpt(folder / 'sft.json')
    assert [dataclasses.replace(c, encoded=()) for c in conversations] == files
    for conversation in conversations:
        assert conversation.encoded == tuple(
            (folder / name).read_bytes() for name in conversation.images)


def test_conversations_are_read_in_any_order(prepared_conversations):
    conversations = read_conversations(prepared_conversations)
    everything = list(conversations)
    assert len(conversations) == 4
    assert conversations[-1] == conversations[3] == everything[3] != everything[0]
    assert conversations[1:3] == everything[1:3]
    with pytest.raises(IndexError):
        conversations[4]


@pytest.fixture(scope='module')
def tokenised(tiny_tokenizer):
    """Returns the function from conversations and their folder to sequences."""
    ids = {f'{name}_token_id': tiny_tokenizer.convert_tokens_to_ids(token) for name, token in (
        ('image', '<|image_pad|>'), ('video', '<|video_pad|>'), ('bos', '<|endoftext|>'),
        ('eos', '<|im_end|>'), ('vision_start', '<|vision_start|>'),
        ('vision_end', '<|vision_end|>'))}
    model_config = preset('tiny', vocab_size=len(tiny_tokenizer), **ids)
    vision = model_config.vision
    preprocess = ImagePreprocessor(Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size), image_spec(model_config))
    return lambda conversations, root, length=2048: conversation_sequences(
        conversations, root, ChatFormat(tiny_tokenizer), preprocess, model_config,
        PixelLimits(28 * 28, 16 * 28 * 28), length)


def test_the_learner_sees_the_same_from_files_and_from_a_dataset(
        prepared_conversations, folder, tokenised, tmp_path):
    from_files = tokenised(load_sharegpt(folder / 'sft.json'), folder)
    # The dataset needs none of the files that it was made of.
    from_dataset = tokenised(read_conversations(prepared_conversations), tmp_path / 'nowhere')
    assert [len(s.images) for s in from_dataset] == [0, 1, 3, 2]
    for ours, theirs in zip(from_dataset, from_files, strict=True):
        for name in ('tokens', 'loss_mask', 'position_ids', 'image_index'):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert [image.key for image in ours.images] == [image.key for image in theirs.images]


def test_an_image_is_decoded_when_its_sequence_is_asked_for(folder, tokenised, monkeypatch):
    opened = []
    sequences = tokenised(load_sharegpt(folder / 'sft.json'), folder)
    real = Image.open
    monkeypatch.setattr(
        Image, 'open', lambda file, **rest: opened.append(file) or real(file, **rest))
    assert len(sequences) == 4 and opened == []
    assert len(sequences[3].images) == 2
    assert opened == [folder / 'images/b.jpg', folder / 'images/c.webp']


def test_faults_are_found_before_training(folder, tokenised):
    conversations = load_sharegpt(folder / 'sft.json')
    with pytest.raises(FileNotFoundError, match='conversation 1: no image .*a.png'):
        tokenised(conversations, folder / 'elsewhere')
    with pytest.raises(ValueError, match='conversation 0: the first turn alone is longer than 9'):
        tokenised(conversations, folder, 9)
    first = conversations[1].messages[2], *conversations[1].messages[1:]
    with pytest.raises(ValueError, match='conversation 0, message 0: expected at most one'):
        tokenised([dataclasses.replace(conversations[1], messages=first)], folder)
    with pytest.raises(ValueError, match='conversation 0: roles must alternate'):
        tokenised([dataclasses.replace(conversations[1], messages=first[1:])], folder)


def test_a_long_conversation_ends_with_the_last_turn_that_fits(folder, tokenised):
    conversations = load_sharegpt(folder / 'sft.json')
    whole = tokenised(conversations, folder)[2]
    cut = tokenised(conversations, folder, len(whole) - 1)[2]
    assert len(cut.images) == 2
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:len(cut)])


# Reads a JSON file, then a dataset of each kind, then runs the command.
PROGRAM = """
import runpy, sys
from vrag_jax.data import datasets
file, questions, conversations, *command = sys.argv[1:]
datasets.read_questions(file)
assert 'tensorflow_datasets' not in sys.modules
assert datasets.read_questions(questions)
assert datasets.read_conversations(conversations)[1].encoded
sys.argv = ['prepare', *command]
try:
    runpy.run_module('vrag_jax.data.prepare', run_name='__main__')
finally:
    assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules
"""


def test_the_command_prepares_and_tensorflow_is_never_imported(
        prepared_questions, prepared_conversations, folder, tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, folder / 'train.json', f'{prepared_questions}:test',
         prepared_conversations, f'--questions={folder}/train.json', '--split=train',
         f'--questions={folder}/test.json', '--split=test', f'--out={tmp_path}'],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    directory = done.stdout.splitlines()[-1]
    assert read_questions(f'{directory}:train') == QUESTIONS
    assert len(read_questions(f'{directory}:test')) == 1


@pytest.mark.parametrize(('suffix', 'message'), [
    ('', "has the splits ['test', 'train']; say which one with"),
    (':validation', "Unknown split 'validation'"),
    (':train[50', 'train[50'),
    (':test[:0]', 'holds nothing'),
])
def test_faulty_splits_are_named(prepared_questions, suffix, message):
    for read in (read_questions, check_questions):
        with pytest.raises(ValueError) as error:
            read(f'{prepared_questions}{suffix}')
        assert message in str(error.value)
        assert str(prepared_questions) in str(error.value)


def test_a_source_of_the_wrong_kind_is_named(prepared_questions, prepared_conversations, tmp_path):
    with pytest.raises(ValueError, match="features .*'uid'.*, but vrag_conversations/1.0.0 has"):
        read_questions(prepared_conversations)
    with pytest.raises(ValueError, match='but vrag_questions/1.0.0 has'):
        check_conversations(f'{prepared_questions}:train')
    # The folder above, and any other.
    for directory in (prepared_questions.parent, tmp_path):
        with pytest.raises(ValueError, match='holds no prepared dataset .*DIR/NAME/1.0.0'):
            check_questions(directory)
    for nothing in (tmp_path / 'none.json', f'{tmp_path}/none:train'):
        with pytest.raises(FileNotFoundError, match='does not exist'):
            check_questions(nothing)
        with pytest.raises(FileNotFoundError, match='no such file'):
            read_questions(nothing)


def test_damage_is_noticed(folder, tmp_path):
    prepared = write_conversations({'train': folder / 'sft.json'}, tmp_path)
    shard, = prepared.glob('*array_record*')
    data = bytearray(shard.read_bytes())
    data[data.index((folder / 'images/b.jpg').read_bytes()[100:110])] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match='record [0-3]: the dataset is damaged: .*hash mismatch'):
        list(read_conversations(prepared))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f'{shard.name} is missing'):
        check_conversations(prepared)


def test_interrupted_writing_leaves_nothing(folder, tmp_path, monkeypatch):
    read, calls = datasets._ConversationRows._image, []

    def interrupted(self, index, name):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, index, name)

    monkeypatch.setattr(datasets._ConversationRows, '_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_conversations({'train': folder / 'sft.json'}, tmp_path)
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
    # Again and to its end; a writer that was killed leaves a folder of this name.
    killed = tmp_path / 'vrag_conversations' / 'incomplete.ABCDEF_1.0.0'
    killed.mkdir()
    prepared = write_conversations({'train': folder / 'sft.json'}, tmp_path)
    assert len(read_conversations(prepared)) == 4
    assert not killed.exists()


def test_what_cannot_be_written_is_named(prepared_questions, folder, tmp_path):
    with pytest.raises(FileExistsError, match='vrag_questions/1.0.0: is there already'):
        write_questions({'train': folder / 'train.json'}, folder / 'out')
    with pytest.raises(ValueError, match="split: expected a name .*, got 'a-b'"):
        write_questions({'a-b': folder / 'train.json'}, tmp_path)
    empty = write_json(tmp_path / 'empty.json', [])
    with pytest.raises(ValueError, match='empty.json: holds no questions'):
        write_questions({'train': empty}, tmp_path)
    with pytest.raises(ValueError, match='empty.json: holds no conversations'):
        write_conversations({'train': empty}, tmp_path)
    faulty = write_json(tmp_path / 'faulty.json', [{**BARE, 'query': None}])
    with pytest.raises(ValueError, match='faulty.json, uid 7: query: is missing'):
        write_questions({'train': faulty}, tmp_path)
    sft = write_json(tmp_path / 'sft.json', json.loads((folder / 'sft.json').read_text()))
    with pytest.raises(FileNotFoundError, match='record 1: there is no image images/a.png'):
        write_conversations({'train': sft}, tmp_path)
    (tmp_path / 'images').mkdir()
    for name in 'a.png', 'b.jpg', 'c.webp':
        (tmp_path / 'images' / name).write_text('no pixels')
    with pytest.raises(ValueError, match='sft.json, record 1: .*a.png is not an image'):
        write_conversations({'train': sft}, tmp_path)
    assert not list(tmp_path.rglob('*.json*record*')) and not list(tmp_path.rglob('1.0.0'))


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--questions=a', '--conversations=b'], 'pass either --questions or --conversations'),
    ([], 'pass either --questions or --conversations'),
    (['--questions=a', '--questions=b'], '2 files and the splits'),
    (['--questions=a', '--questions=b', '--split=x', '--split=x'], 'all different'),
    (['--questions=/nowhere/q.json'], '/nowhere/q.json: no such file'),
    (['a.json'], 'unexpected arguments'),
])
def test_the_command_refuses_in_one_line(arguments, message, tmp_path):
    with flagsaver.flagsaver():
        rest = flags.FLAGS(['prepare', f'--out={tmp_path}', *arguments])
        with pytest.raises(SystemExit, match=message):
            prepare.main(rest)
    assert not list(tmp_path.iterdir())


def config(**data):
    return RunConfig('sft', policy=PolicyConfig(preset='tiny'), data=DataConfig(**data),
                     sft=SftConfig(epochs=1))


def test_a_config_takes_prepared_datasets(prepared_questions, prepared_conversations, folder):
    for trajectories in (folder / 'sft.json', prepared_conversations,
                         f'{prepared_conversations}:train'):
        check(config(
            source='files', manifest=str(folder / 'test.json'), trajectories=str(trajectories),
            train_questions=f'{prepared_questions}:train', eval_questions=f'{folder}/test.json'))


@pytest.mark.parametrize(('value', 'message'), [
    ('QUESTIONS', 'config.data.trajectories: .*: expected a dataset with the features'),
    ('FOLDER', 'config.data.trajectories: .* holds no prepared dataset'),
    ('FOLDER/none', r'config.data.trajectories: .*/none does not exist; pass an existing path '
                    'with --config.data.trajectories=PATH'),
])
def test_a_config_with_anything_else_is_refused(prepared_questions, folder, value, message):
    value = value.replace('QUESTIONS', f'{prepared_questions}:test').replace(
        'FOLDER', str(folder))
    with pytest.raises(ConfigError, match=message):
        check(config(trajectories=value))
