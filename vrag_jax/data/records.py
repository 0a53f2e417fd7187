"""Questions and SFT conversations in the file formats of the reference."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from vrag_jax.actions.observation import IMAGE_MARK
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.reference_pages import ReferencePages

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Where an answer stands: a box x1, y1, x2, y2 in raw pixels of a page."""

    page_id: str
    bbox: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      uid: unique in its file.
      query: the question's text.
      answer: the reference answer.
      aliases: other answers that are right.
      file_name: the document's file, e.g. 'report.pdf'.
      reference_pages: numbers of the pages that answer it.
      page_ids: ids of these pages, as far as they are known.
      source_type: 'Text', 'Table', 'Chart', 'Layout', joined by ', '; or ''.
      query_type: e.g. 'Single-Hop' or 'Multi-Hop'; or ''.
      language: e.g. 'en'; or ''.
      evidence: boxes that show the answer, where they are known.
      extra: all other fields of `meta_info`.
      missing_pages: texts on reference pages that are not among the pages there are.
    """

    uid: str
    query: str
    answer: str
    aliases: tuple[str, ...] = ()
    file_name: str = ''
    reference_pages: tuple[int, ...] = ()
    page_ids: tuple[str, ...] = ()
    source_type: str = ''
    query_type: str = ''
    language: str = ''
    evidence: tuple[Evidence, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    missing_pages: tuple[str, ...] = ()


def load_questions(path: str | os.PathLike, store: PageStore | None = None) -> list[Question]:
    """Reads a question file, `{"examples": [...]}` or a bare list of examples.

    An example has `uid`, `query`, `reference_answer` and `meta_info`; the fields
    of `meta_info` are optional and may be a string or a list of strings where
    this makes sense. `answer_aliases` and `evidence` are optional additions.
    A question's page ids stand in the optional list `page_ids` of `meta_info`, or
    are those of its reference pages in the document that `file_name` names, see
    `reference_pages.ReferencePages`.

    Files are merged without regard to uids, so an example whose uid is taken gets another
    one ('7#2'), and one that stands there twice with all it says is left out; a warning
    says how many.

    Args:
      path: the file.
      store: the pages there are; `page_ids` holds only pages of it. Without a
        store page 3 of 'report.pdf' is taken to be 'report_3'.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a field is missing or wrong; names the file, the uid and the field.
    """
    return parse_questions(read_examples(path), path, store)


def read_examples(path: str | os.PathLike) -> list[Any]:
    """Reads the examples of a question file as they stand there, see `load_questions`."""
    examples = _read_json(path)
    if isinstance(examples, dict):
        examples = examples.get('examples')
    if not isinstance(examples, list):
        raise ValueError(f'{path}: expected {{"examples": [...]}} or a list of examples')
    return examples


def parse_questions(
    examples: Iterable[Any], where: str | os.PathLike, store: PageStore | None = None
) -> list[Question]:
    """Returns the questions of examples, see `load_questions`.

    Args:
      examples: as in a question file.
      where: what they come from, for messages.
      store: the pages there are, or None.

    Raises:
      ValueError: if a field is missing or wrong.
    """
    return list(with_unique_uids(parse_examples(examples, where, store), where).values())


def parse_examples(
    examples: Iterable[Any], where: str | os.PathLike, store: PageStore | None = None
) -> list[Question]:
    """Returns a question an example, whatever their uids; see `parse_questions`."""
    examples = list(examples)
    pages = None if store is None else ReferencePages(store, _file_names(examples))
    return [_parse_example(example, f'{where}, example {index}', store, pages)
            for index, example in enumerate(examples)]


def _file_names(examples: Iterable[Any]) -> set[str]:
    """File names of all examples, as far as they have any."""
    metas = (example.get('meta_info') for example in examples if isinstance(example, dict))
    names = (meta.get('file_name') for meta in metas if isinstance(meta, dict))
    return {name for name in names if isinstance(name, str)}


def with_unique_uids(
    questions: Iterable[Question], where: str | os.PathLike
) -> dict[int, Question]:
    """Gives questions of merged files uids of their own; a warning says how many.

    Args:
      questions: in order.
      where: what they come from, for the warning.

    Returns:
      The questions by their places, without those that stood there before, with all they say.
    """
    seen: set[str] = set()
    taken: set[str] = set()
    found: dict[int, Question] = {}
    twice, renamed = 0, []
    for place, question in enumerate(questions):
        content = repr(question)  # All that it says; `extra` cannot be hashed.
        if content in seen:
            twice += 1
            continue
        seen.add(content)
        uid, number = question.uid, 1
        while uid in taken:
            number += 1
            uid = f'{question.uid}#{number}'
        if number > 1:
            renamed.append(uid)
        taken.add(uid)
        found[place] = dataclasses.replace(question, uid=uid)
    if twice or renamed:
        some = f', e.g. {renamed[0]!r}' if renamed else ''
        _LOG.warning('%s: of %d questions %d have a uid that is taken and get another%s; %d stand '
                     'there twice and count once', where, len(found) + twice, len(renamed), some,
                     twice)
    return found


def save_questions(path: str | os.PathLike, questions: Iterable[Question]) -> None:
    """Writes questions so that `load_questions` returns equal ones."""
    text = json.dumps({'examples': [_to_example(q) for q in questions]},
                      ensure_ascii=False, indent=1)
    Path(path).write_text(text + '\n', encoding='utf-8')


def _to_example(question: Question) -> dict[str, Any]:
    meta = {
        'file_name': question.file_name,
        'reference_page': list(question.reference_pages),
        'page_ids': list(question.page_ids),
        'source_type': question.source_type,
        'query_type': question.query_type,
        'language': question.language,
        **question.extra,
    }
    return {
        'uid': question.uid,
        'query': question.query,
        'reference_answer': question.answer,
        'answer_aliases': list(question.aliases),
        'meta_info': meta,
        'evidence': [{'page_id': e.page_id, 'bbox': list(e.bbox)} for e in question.evidence],
    }


def _parse_example(
    example: Any, where: str, store: PageStore | None, known: ReferencePages | None
) -> Question:
    if not isinstance(example, dict):
        raise ValueError(f'{where}: expected an object, got {example!r}')
    uid = example.get('uid')
    if isinstance(uid, bool) or not isinstance(uid, (str, int)) or uid == '':
        raise ValueError(f'{where}: uid: expected a string or an integer, got {uid!r}')
    where = f'{where.partition(", example")[0]}, uid {uid}'
    meta = dict(_field(example, 'meta_info', dict, where, {}))
    file_name = _field(meta, 'file_name', str, where, '')
    pages = meta.pop('reference_page', [])
    pages = pages if isinstance(pages, list) else [pages]
    for page in pages:
        if isinstance(page, bool) or not isinstance(page, int):
            raise ValueError(f'{where}: reference_page: expected integers, got {pages!r}')
    page_ids = _strings(meta, 'page_ids', where)
    missing = [f'page id {p!r}' for p in page_ids if store is not None and p not in store]
    if 'page_ids' not in meta and file_name:
        if known is None:
            stem = PurePath(file_name).stem
            page_ids = [f'{stem}_{page}' for page in pages]
        else:
            page_ids, missing = known.find(file_name, pages)
    elif 'page_ids' not in meta and store is not None:
        missing = [f'page {page} of no document (meta_info.file_name is missing)'
                   for page in pages]
    return Question(
        uid=str(uid),
        query=_field(example, 'query', str, where),
        answer=_field(example, 'reference_answer', str, where),
        aliases=tuple(_strings(example, 'answer_aliases', where)),
        file_name=file_name,
        reference_pages=tuple(pages),
        page_ids=tuple(_own_id(p, store) for p in page_ids if store is None or p in store),
        source_type=', '.join(_strings(meta, 'source_type', where)),
        query_type=', '.join(_strings(meta, 'query_type', where)),
        language=_field(meta, 'language', str, where, ''),
        evidence=tuple(_parse_evidence(e, where, store)
                       for e in _field(example, 'evidence', list, where, [])),
        missing_pages=tuple(missing),
        extra={k: v for k, v in meta.items() if k not in _QUESTION_FIELDS},
    )


def _own_id(page_id: str, store: PageStore | None) -> str:
    """Returns a page's id as the store has it: in a file it may be in another form of Unicode."""
    return page_id if store is None or page_id not in store else store[page_id].page_id


_QUESTION_FIELDS = frozenset(
    ('file_name', 'reference_page', 'page_ids', 'source_type', 'query_type', 'language'))
_REQUIRED = object()


def _field(values: Mapping, name: str, kind: type, where: str, default: Any = _REQUIRED) -> Any:
    """Returns a field of a given type; None counts as missing."""
    value = values.get(name)
    if value is None:
        if default is _REQUIRED:
            raise ValueError(f'{where}: {name}: is missing')
        return default
    if not isinstance(value, kind):
        raise ValueError(f'{where}: {name}: expected {kind.__name__}, got {value!r}')
    return value


def _strings(values: Mapping, name: str, where: str) -> list[str]:
    """Returns a field that is a string or a list of strings as a list."""
    value = values.get(name)
    if value is None or value == '':
        return []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f'{where}: {name}: expected a string or strings, got {value!r}')
    return items


def _parse_evidence(value: Any, where: str, store: PageStore | None) -> Evidence:
    if not isinstance(value, dict):
        raise ValueError(f'{where}: evidence: expected an object, got {value!r}')
    page_id = _field(value, 'page_id', str, where)
    box = _field(value, 'bbox', list, where)
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in box)
    if not numbers or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f'{where}: evidence.bbox: expected x1 < x2 and y1 < y2 in '
                         f'[x1, y1, x2, y2], got {box!r}')
    x1, y1, x2, y2 = box
    return Evidence(_own_id(page_id, store), (x1, y1, x2, y2))


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation; `<image>` in `content` stands for an image."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """An SFT conversation.

    Attributes:
      messages: what was said.
      images: files in the order of the `<image>` marks.
      encoded: the bytes of these files where the conversation comes with them; else
        empty, and the files are read.
    """

    messages: tuple[Message, ...]
    images: tuple[str, ...]
    encoded: tuple[bytes, ...] = ()


def split_system(conversation: Conversation) -> tuple[str | None, tuple[Message, ...]]:
    """Returns the text of a leading system message, or None, and the messages after it."""
    messages = conversation.messages
    if messages[:1] and messages[0].role == 'system':
        return messages[0].content, messages[1:]
    return None, messages


def load_sharegpt(path: str | os.PathLike) -> list[Conversation]:
    """Reads SFT conversations in the ShareGPT format of the reference.

    A record has `messages` of `role` and `content`, or `conversations` of `from` and `value`,
    as ShareGPT itself has; `human` and `gpt` are the user and the assistant. `system` may be
    beside them. Images stand in `images` or `image`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a conversation is malformed, its roles do not alternate
        (after an optional system message) from user to assistant, or its
        `<image>` marks are not as many as its images; names file and record.
    """
    records = _read_json(path)
    if not isinstance(records, list):
        raise ValueError(f'{path}: expected a list of conversations')
    return [parse_conversation(record, f'{path}, record {i}') for i, record in enumerate(records)]


_MESSAGE_FIELDS = {'messages': ('role', 'content'), 'conversations': ('from', 'value')}
_ROLES = {'human': 'user', 'gpt': 'assistant'}


def parse_conversation(record: Any, where: str) -> Conversation:
    """Returns the conversation of a ShareGPT record.

    Args:
      record: as in a file of conversations.
      where: what it comes from, for messages.

    Raises:
      ValueError: see `load_sharegpt`.
    """
    if not isinstance(record, dict):
        raise ValueError(f'{where}: expected an object, got {record!r}')
    style = 'conversations' if 'messages' not in record and 'conversations' in record else (
        'messages')
    role, content = _MESSAGE_FIELDS[style]
    system = _field(record, 'system', str, where, '')
    messages = [Message('system', system)] if system else []
    for i, message in enumerate(_field(record, style, list, where)):
        if not isinstance(message, dict):
            raise ValueError(f'{where}: {style}[{i}]: expected an object, got {message!r}')
        inside = f'{where}, message {i}'
        name = _field(message, role, str, inside)
        messages.append(Message(_ROLES.get(name, name), _field(message, content, str, inside)))
    roles = [message.role for message in messages]
    if roles[:1] == ['system']:
        roles = roles[1:]
    if not roles or roles != ['user', 'assistant'] * (len(roles) // 2):
        raise ValueError(f'{where}: {style}: expected turns of user and assistant, got {roles}')
    images = _strings(record, 'images' if record.get('images') else 'image', where)
    marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if marks != len(images):
        raise ValueError(f'{where}: images: there are {len(images)}, but {marks} {IMAGE_MARK} '
                         f'marks in the messages')
    for i, message in enumerate(messages):
        if IMAGE_MARK in message.content and message.role != 'user':
            raise ValueError(f'{where}: {style}[{i}]: {IMAGE_MARK} stands for an image in a '
                             f"user's message alone, and this one is of the {message.role}")
    return Conversation(tuple(messages), tuple(images))


def _read_json(path: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise FileNotFoundError(f'{path}: no such file') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: not JSON in UTF-8: {error}') from error
