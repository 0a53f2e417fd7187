"""The tiny tokenizer follows Qwen2's rules; bytes of ids are right for any vocabulary."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vrag_jax.actions.grammar import tag_tokens
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.tiny_tokenizer import LETTERS, train_tiny_tokenizer
from vrag_jax.models.common.tokenizer import (
    SPECIAL_TOKENS,
    ids_without_text,
    load_tokenizer,
    token_bytes,
)


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]


def test_has_the_size_asked_for_and_ends_with_specials_and_tags(tiny_tokenizer):
    assert len(tiny_tokenizer) == 400
    ids = tiny_tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, *tag_tokens()])
    assert ids == list(range(400 - 22, 400))
    assert tiny_tokenizer.eos_token == '<|im_end|>'
    assert tiny_tokenizer.pad_token == '<|endoftext|>'


def test_digits_letters_and_tags_are_single_tokens(tiny_tokenizer):
    assert pieces(tiny_tokenizer, '4721') == list('4721')
    assert pieces(tiny_tokenizer, ' A Q') == [' A', ' Q']
    for letter in LETTERS:
        assert len(tiny_tokenizer.encode(f' {letter}', add_special_tokens=False)) == 1
    assert pieces(tiny_tokenizer, '<think>4</think><bbox>[12,3]</bbox>') == [
        '<think>', '4', '</think>', '<bbox>', '[', '1', '2', ',', '3', ']', '</bbox>']
    for role in ('user', 'assistant'):
        assert len(tiny_tokenizer.encode(role, add_special_tokens=False)) == 1


def test_tags_are_decoded_and_special_tokens_are_not(tiny_tokenizer):
    text = '<think> K.</think><answer>472</answer>'
    ids = tiny_tokenizer.encode(text + '<|im_end|>', add_special_tokens=False)
    assert tiny_tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back_normalised(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    expected = tiny_tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert tiny_tokenizer.decode(ids) == expected
    if not any(token in text for token in SPECIAL_TOKENS):
        table = token_bytes(tiny_tokenizer)
        assert b''.join(table[i] for i in ids).decode() == expected


def test_is_the_same_each_time(small_world, tiny_tokenizer, tmp_path):
    texts = ['on the market page of velora'] * 3
    folders = [tmp_path / 'a', tmp_path / 'b']
    for folder in folders:
        train_tiny_tokenizer(texts, 330, folder)
    a, b = ((folder / 'tokenizer.json').read_bytes() for folder in folders)
    assert a == b


def test_phrases_are_one_token_with_or_without_a_space_before_them(tmp_path):
    tokenizer = train_tiny_tokenizer(
        ['the top left panel'] * 3, 330, tmp_path, phrases=['top left', 'top right'])
    text = 'top left on, the top right'
    assert [p for p in pieces(tokenizer, text) if 'top' in p] == ['top left', ' top right']
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert b' top left' in token_bytes(tokenizer)


def test_a_vocabulary_without_room_is_refused(tmp_path):
    with pytest.raises(ValueError, match='vocab_size must be at least 304'):
        train_tiny_tokenizer(['text'], 303, tmp_path)
    with pytest.raises(ValueError, match='has no room for'):
        train_tiny_tokenizer(['the quick brown fox'] * 9, 305, tmp_path)


def test_loads_beside_a_model_of_the_qwen_family(tiny_tokenizer, tmp_path):
    folder = tmp_path / 'checkpoint'
    shutil.copytree(Path(tiny_tokenizer.name_or_path), folder)
    (folder / 'config.json').write_text(json.dumps({'model_type': 'qwen2_5_vl'}))
    loaded = AutoTokenizer.from_pretrained(folder)
    text = '<|im_start|>user\nwhat is in column b of panel K? 472 <think>'
    assert loaded.encode(text) == tiny_tokenizer.encode(text)
    assert loaded.chat_template == tiny_tokenizer.chat_template


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no tokenizer.json'):
        load_tokenizer(tmp_path)


def test_bytes_of_special_added_and_missing_ids(tiny_tokenizer):
    table = token_bytes(tiny_tokenizer, 512)
    ids = tiny_tokenizer.convert_tokens_to_ids
    assert len(table) == 512
    assert table[ids('<|image_pad|>')] == b''
    assert table[ids('</bbox>')] == b'</bbox>'
    assert table[450] == b''
    assert sorted(b for b in table[:256] if len(b) == 1) == [bytes([i]) for i in range(256)]
    with pytest.raises(ValueError, match='has ids up to 399'):
        token_bytes(tiny_tokenizer, 300)


def test_ids_without_text_are_specials_and_padding_but_not_ends(tiny_tokenizer):
    ends = tiny_tokenizer.convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
    found = ids_without_text(tiny_tokenizer, 448, ends)
    specials = set(tiny_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    assert set(found) == (specials - set(ends)) | set(range(len(tiny_tokenizer), 448))


@pytest.mark.parametrize('messages', [
    [{'role': 'user', 'content': 'hi'}],
    [{'role': 'system', 'content': 'be kind'}, {'role': 'user', 'content': 'hi'},
     {'role': 'assistant', 'content': 'ho'}],
    [{'role': 'user', 'content': [
        {'type': 'text', 'text': 'see'}, {'type': 'image'}, {'type': 'text', 'text': 'it'},
        {'type': 'video'}, {'type': 'image_url', 'image_url': 'a.jpg'}]}],
])
@pytest.mark.parametrize('generate', [False, True])
def test_template_writes_chatml(tiny_tokenizer, messages, generate):
    marks = {'image': 'image', 'image_url': 'image', 'video': 'video'}
    expected = ''
    for message in messages:
        content = message['content']
        if not isinstance(content, str):
            content = ''.join(
                part['text'] if part['type'] == 'text'
                else f'<|vision_start|><|{marks[part["type"]]}_pad|><|vision_end|>'
                for part in content)
        expected += f'<|im_start|>{message["role"]}\n{content}<|im_end|>\n'
    expected += '<|im_start|>assistant\n' if generate else ''
    assert tiny_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generate) == expected


def without_template(tokenizer, folder):
    """A copy of a tokenizer's folder whose tokenizer_config.json has no chat template."""
    shutil.copytree(tokenizer.name_or_path, folder)
    file = folder / 'tokenizer_config.json'
    config = json.loads(file.read_text())
    del config['chat_template']
    file.write_text(json.dumps(config))
    for name in ('chat_template.json', 'chat_template.jinja'):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(('name', 'write'), [
    ('chat_template.json', lambda text: json.dumps({'chat_template': text})),
    ('chat_template.jinja', lambda text: text)])
def test_a_chat_template_in_a_file_of_its_own_is_read(tiny_tokenizer, tmp_path, name, write):
    folder = without_template(tiny_tokenizer, tmp_path / 'tokenizer')
    assert load_tokenizer(folder).chat_template is None
    (folder / name).write_text(write(tiny_tokenizer.chat_template))
    assert load_tokenizer(folder).chat_template == tiny_tokenizer.chat_template


def test_the_tokenizers_own_chat_template_goes_first(tiny_tokenizer, tmp_path):
    folder = tmp_path / 'tokenizer'
    shutil.copytree(tiny_tokenizer.name_or_path, folder)
    (folder / 'chat_template.json').write_text('{"chat_template": "another"}')
    assert load_tokenizer(folder).chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize('text', ['{"chat_template": ', '{}', '[]'])
def test_a_faulty_chat_template_is_named(tiny_tokenizer, tmp_path, text):
    folder = without_template(tiny_tokenizer, tmp_path / 'tokenizer')
    (folder / 'chat_template.json').write_text(text)
    with pytest.raises(ValueError, match=r'chat_template\.json: no chat template'):
        load_tokenizer(folder)


def test_a_tokenizer_without_a_chat_template_says_what_to_do(tiny_tokenizer, tmp_path):
    folder = without_template(tiny_tokenizer, tmp_path / 'tokenizer')
    with pytest.raises(ValueError, match=r'no chat template: put .*chat_template\.jinja'):
        ChatFormat(load_tokenizer(folder))
