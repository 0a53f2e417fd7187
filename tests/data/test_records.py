"""Question files and SFT conversations of the reference are read; faults are named."""

import json

import pytest

from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.data.records import (
    Evidence,
    Message,
    Question,
    load_questions,
    load_sharegpt,
    save_questions,
)

EXAMPLE = {'uid': 'q1', 'query': 'why?', 'reference_answer': 'because',
           'meta_info': {'file_name': 'a.b.pdf', 'reference_page': [2, 7]}}


def write(path, value):
    path.write_text(json.dumps(value), encoding='utf-8')
    return path


def test_reads_the_annotated_real_questions(real_pages):
    questions = load_questions(
        real_pages / 'questions.json', PageStore.open(real_pages / 'pages.jsonl'))
    assert len(questions) == 99
    first = questions[0]
    assert (first.uid, first.answer, first.aliases) == ('aliyun4_04_q1', '2014', ('2014年',))
    assert (first.source_type, first.query_type, first.language) == ('Layout', 'Single-Hop', 'zh')
    assert first.page_ids == ('aliyun4_4',)
    assert first.evidence == (Evidence('aliyun4_4', (974, 1539, 1557, 2301)),)
    for question in questions:
        # The annotators named the pages of the boxes by their ids.
        assert set(question.page_ids) == {e.page_id for e in question.evidence}
    assert sum('also_readable_on_page' in q.extra for q in questions) == 2


def test_reads_the_reference_format(real_pages):
    questions = load_questions(real_pages / 'example_dataset_reference_format.json')
    assert [q.uid for q in questions] == ['0', '1', '2', '3']
    assert [q.reference_pages for q in questions] == [(5,), (19, 20), (5,), (5, 7)]
    assert [q.source_type for q in questions] == ['Chart', 'Table', '', '']
    assert questions[3].query_type == 'Multi-Hop_Single-Span'
    assert questions[0].page_ids == ('PH_2016.06.08_Economy-Final_5',)
    assert questions[0].extra['doc_type'] == 'Research report / Introduction'
    assert not questions[0].aliases and not questions[0].evidence


@pytest.mark.parametrize('name', ['questions.json', 'example_dataset_reference_format.json'])
def test_saved_real_questions_come_back(real_pages, tmp_path, name):
    questions = load_questions(real_pages / name)
    save_questions(tmp_path / 'saved.json', questions)
    assert load_questions(tmp_path / 'saved.json') == questions


def test_round_trip_keeps_every_field(tmp_path):
    questions = [
        Question('1', 'q', 'a'),
        Question('2', '问?', '答', ('x', 'y'), 'd.pdf', (1, 2), ('d_1',), 'Text, Table',
                 'Multi-Hop', 'zh', (Evidence('d_1', (0, 0.5, 2, 3)),), {'kind': 'text', 'n': 3}),
    ]
    save_questions(tmp_path / 'q.json', questions)
    assert load_questions(tmp_path / 'q.json') == questions


def test_a_bare_list_lists_of_strings_and_single_pages_are_accepted(tmp_path):
    example = {**EXAMPLE, 'uid': 7, 'answer_aliases': 'since',
               'meta_info': {**EXAMPLE['meta_info'], 'reference_page': 4,
                             'source_type': ['Text', 'Table'], 'query_type': None}}
    question, = load_questions(write(tmp_path / 'q.json', [example]))
    assert (question.uid, question.reference_pages) == ('7', (4,))
    assert (question.source_type, question.query_type) == ('Text, Table', '')
    assert question.aliases == ('since',)


def test_merged_files_keep_their_questions_under_uids_of_their_own(tmp_path, caplog):
    other = {**EXAMPLE, 'query': 'when?'}
    path = write(tmp_path / 'merged.json', [
        EXAMPLE, other, EXAMPLE, {**EXAMPLE, 'uid': 'q1#2', 'query': 'who?'},
        {**EXAMPLE, 'reference_answer': 'so'}, {**EXAMPLE, 'uid': 7}, {**EXAMPLE, 'uid': '7'}])
    questions = load_questions(path)
    assert [(q.uid, q.query, q.answer) for q in questions] == [
        ('q1', 'why?', 'because'), ('q1#2', 'when?', 'because'), ('q1#2#2', 'who?', 'because'),
        ('q1#3', 'why?', 'so'), ('7', 'why?', 'because')]
    record, = caplog.records
    assert record.getMessage() == (
        f"{path}: of 7 questions 3 have a uid that is taken and get another, e.g. 'q1#2'; 2 stand "
        'there twice and count once')
    caplog.clear()
    load_questions(write(tmp_path / 'good.json', [EXAMPLE, {**other, 'uid': 'q2'}]))
    assert not caplog.records


def test_page_ids_are_those_that_exist(tmp_path):
    path = write(tmp_path / 'q.json', {'examples': [EXAMPLE]})
    assert load_questions(path)[0].page_ids == ('a.b_2', 'a.b_7')
    store = PageStore(tmp_path, [Page('x', 'a.b', 7, 'x.jpg', 9, 9),
                                 Page('y', 'other', 2, 'y.jpg', 9, 9)])
    question, = load_questions(path, store)
    assert question.page_ids == ('x',)
    assert question.missing_pages == ("a.b.pdf page 2 (of 'a.b' there are other pages)",)
    explicit = {**EXAMPLE, 'meta_info': {'page_ids': ['y', 'z']}}
    path = write(tmp_path / 'explicit.json', {'examples': [explicit]})
    assert load_questions(path)[0].page_ids == ('y', 'z')
    question, = load_questions(path, store)
    assert (question.page_ids, question.missing_pages) == (('y',), ("page id 'z'",))


@pytest.mark.parametrize(('change', 'message'), [
    ({'query': None}, 'uid q1: query: is missing'),
    ({'reference_answer': 5}, 'uid q1: reference_answer: expected str, got 5'),
    ({'uid': None}, 'example 0: uid: expected a string or an integer, got None'),
    ({'uid': True}, 'example 0: uid'),
    ({'meta_info': []}, 'uid q1: meta_info: expected dict'),
    ({'meta_info': {'reference_page': ['4']}}, 'uid q1: reference_page: expected integers'),
    ({'meta_info': {'source_type': 3}}, 'uid q1: source_type: expected a string or strings'),
    ({'answer_aliases': [1]}, 'uid q1: answer_aliases'),
    ({'evidence': ['box']}, 'uid q1: evidence: expected an object'),
    ({'evidence': [{'bbox': [0, 0, 1, 1]}]}, 'uid q1: page_id: is missing'),
    ({'evidence': [{'page_id': 'p', 'bbox': [0, 0, 1]}]}, 'uid q1: evidence.bbox'),
    ({'evidence': [{'page_id': 'p', 'bbox': [5, 0, 1, 1]}]}, 'uid q1: evidence.bbox'),
    ({'evidence': [{'page_id': 'p', 'bbox': [0, 0, '1', 1]}]}, 'uid q1: evidence.bbox'),
])
def test_faults_name_file_uid_and_field(tmp_path, change, message):
    path = write(tmp_path / 'faulty.json', {'examples': [{**EXAMPLE, **change}]})
    with pytest.raises(ValueError) as error:
        load_questions(path)
    assert 'faulty.json' in str(error.value)
    assert message in str(error.value)


def test_faults_of_the_whole_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.json'):
        load_questions(tmp_path / 'none.json')
    (tmp_path / 'torn.json').write_text('{"examples": [')
    with pytest.raises(ValueError, match='torn.json: not JSON'):
        load_questions(tmp_path / 'torn.json')
    with pytest.raises(ValueError, match='expected .*examples'):
        load_questions(write(tmp_path / 'other.json', {'data': []}))


def test_reads_the_reference_sft_conversations(real_pages):
    conversations = load_sharegpt(real_pages / 'example_sft_sharegpt.json')
    assert [len(c.images) for c in conversations] == [2, 3, 3]
    assert [len(c.messages) for c in conversations] == [6, 8, 8]
    assert conversations[0].messages[2] == Message('user', '<image>')
    assert conversations[0].messages[3].content.endswith('<bbox>[437, 276, 719, 495]</bbox>')


USER, ASSISTANT = {'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho'}


def test_a_system_message_may_come_first(tmp_path):
    system = {'role': 'system', 'content': 'be kind'}
    path = write(tmp_path / 's.json', [{'messages': [system, USER, ASSISTANT]}])
    assert [m.role for m in load_sharegpt(path)[0].messages] == ['system', 'user', 'assistant']


@pytest.mark.parametrize('record', [
    {'conversations': [{'from': 'system', 'value': 'be kind'}, {'from': 'human', 'value': 'hi'},
                       {'from': 'gpt', 'value': 'ho'}]},
    {'conversations': [{'from': 'user', 'value': 'hi'}, {'from': 'assistant', 'value': 'ho'}],
     'system': 'be kind'},
    {'messages': [USER, ASSISTANT], 'system': 'be kind'}])
def test_sharegpts_own_names_are_read(tmp_path, record):
    conversation, = load_sharegpt(write(tmp_path / 's.json', [record]))
    assert conversation.messages == (
        Message('system', 'be kind'), Message('user', 'hi'), Message('assistant', 'ho'))


def test_one_image_may_stand_alone(tmp_path):
    record = {'conversations': [{'from': 'human', 'value': 'hi'}, {'from': 'gpt', 'value': 'ho'},
                                {'from': 'human', 'value': '<image>'},
                                {'from': 'gpt', 'value': 'a'}], 'image': 'a.jpg'}
    assert load_sharegpt(write(tmp_path / 's.json', [record]))[0].images == ('a.jpg',)


@pytest.mark.parametrize(('record', 'message'), [
    ({}, 'messages: is missing'),
    ({'conversations': [{'role': 'human', 'content': 'hi'}]}, 'message 0: from: is missing'),
    ({'conversations': [{'from': 'human', 'value': 'hi'}, {'from': 'observation', 'value': 'x'}]},
     "conversations: expected turns of user and assistant, got ['user', 'observation']"),
    ({'messages': [USER, ASSISTANT], 'images': ['a.jpg']}, 'images: there are 1, but 0 <image>'),
    ({'messages': [{'role': 'user', 'content': '<image> <image>'}, ASSISTANT],
      'images': ['a.jpg']}, 'images: there are 1, but 2'),
    ({'messages': [USER]}, 'expected turns of user and assistant'),
    ({'messages': [ASSISTANT, USER]}, 'expected turns of user and assistant'),
    ({'messages': []}, 'expected turns of user and assistant'),
    ({'messages': [USER, 'ho']}, 'messages[1]: expected an object'),
    ({'messages': [USER, {'role': 'assistant'}]}, 'message 1: content: is missing'),
])
def test_faulty_conversations_are_named(tmp_path, record, message):
    good = {'messages': [USER, ASSISTANT], 'images': []}
    with pytest.raises(ValueError) as error:
        load_sharegpt(write(tmp_path / 'sft.json', [good, record]))
    assert 'sft.json, record 1' in str(error.value)
    assert message in str(error.value)
