"""Questions and conversations from a JSON file or a prepared TFDS dataset.

A source is the path of a file in a format of the reference, or the directory of
a dataset that TFDS has written in a format with random access, with a split
behind a colon where there are several: `DIR/vrag_questions/1.0.0:train`. TFDS's
slices work, too: `...:train[:1000]`. TensorFlow is not needed.
"""

import dataclasses
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.image_root import find_image_root
from vrag_jax.data.mapped import MappedSequence
from vrag_jax.data.records import (
    Conversation,
    Question,
    load_questions,
    load_sharegpt,
    parse_conversation,
    parse_examples,
    parse_questions,
    read_examples,
    with_unique_uids,
)
from vrag_jax.perception.image_files import check_image

Source = str | os.PathLike
Row = Mapping[str, Any]

# Features that a dataset must have.
_QUESTION_FEATURES = frozenset(
    ('uid', 'query', 'reference_answer', 'answer_aliases', 'meta_info', 'evidence'))
_CONVERSATION_FEATURES = frozenset(('messages', 'images'))


def split_sources(text: str) -> list[str]:
    """Returns sources that are separated by commas; a file whose name has one stays whole."""
    if Path(text).exists():
        return [text]
    return [part.strip() for part in text.split(',') if part.strip()]


def read_questions(source: Source, store: PageStore | None = None) -> list[Question]:
    """Reads questions from a file or a dataset; see `load_questions`.

    Args:
      source: see the module.
      store: the pages there are; `page_ids` holds only pages of it.

    Raises:
      FileNotFoundError: if there is no such file or split.
      ValueError: if the source holds something else; says what.
    """
    prepared = _split_source(source)
    if prepared is None:
        return load_questions(source, store)
    rows = _open_rows(source, *prepared, _QUESTION_FEATURES)
    return parse_questions((_to_example(row) for row in rows), source, store)


def read_conversations(source: Source) -> Sequence[Conversation]:
    """Reads conversations from a file or a dataset; see `load_sharegpt`.

    Args:
      source: see the module.

    Returns:
      The conversations. Those of a dataset bring their images, and are read when
      they are asked for.

    Raises:
      FileNotFoundError: if there is no such file or split.
      ValueError: if the source holds something else; says what.
    """
    prepared = _split_source(source)
    if prepared is None:
        return load_sharegpt(source)
    rows = _open_rows(source, *prepared, _CONVERSATION_FEATURES)
    return MappedSequence(rows, lambda i, row: _to_conversation(row, f'{source}, record {i}'))


def check_questions(source: Source) -> None:
    """Raises what `read_questions` would, as far as it is seen without reading everything."""
    _check(source, _QUESTION_FEATURES)


def check_conversations(source: Source) -> None:
    """Raises what `read_conversations` would, as far as it is seen without reading everything."""
    _check(source, _CONVERSATION_FEATURES)


def write_questions(files: Mapping[str, Source], out: Source) -> Path:
    """Makes a TFDS dataset of question files.

    Args:
      files: the file of each split.
      out: the dataset is written to `out/vrag_questions/VERSION`.

    Returns:
      The dataset's directory, a source for `read_questions`.

    Raises:
      FileExistsError: if it is there already.
      FileNotFoundError: if there is no such file.
      ValueError: if a file is faulty or empty, or a split has no good name.
    """
    from vrag_jax.data.tfds_builders import VragQuestions  # Slow to import.

    return _write(VragQuestions, files, out, lambda file: list(_question_rows(file)))


def write_conversations(
    files: Mapping[str, Source], out: Source, image_root: str = ''
) -> Path:
    """Makes a TFDS dataset of files of conversations, with their images.

    Args:
      files: the file of each split. Images are copied as they are, one conversation at a
        time.
      out: the dataset is written to `out/vrag_conversations/VERSION`.
      image_root: what images are relative to, see `image_root.find_image_root`.

    Returns:
      The dataset's directory, a source for `read_conversations`.

    Raises:
      FileExistsError: if it is there already.
      FileNotFoundError: if there is no such file, or an image is missing.
      ValueError: if a file is faulty or empty, an image cannot be read, or a split
        has no good name.
    """
    from vrag_jax.data.tfds_builders import VragConversations  # Slow to import.

    return _write(VragConversations, files, out, lambda file: _ConversationRows(file, image_root))


def _split_source(source: Source) -> tuple[Path, str] | None:
    """Returns directory and split (or '') of a dataset; None for anything but a directory."""
    text = os.fspath(source)
    if Path(text).is_dir():
        return Path(text), ''
    match = re.fullmatch(r'(.+?):([A-Za-z][^/]*)', text)
    if match and not Path(text).exists() and Path(match[1]).is_dir():
        return Path(match[1]), match[2]
    return None


def _check(source: Source, features: frozenset[str]) -> None:
    prepared = _split_source(source)
    if prepared is not None:
        _open_rows(source, *prepared, features)
    elif not Path(source).is_file():
        raise FileNotFoundError(f'{source} does not exist')


def _open_rows(
    source: Source, directory: Path, split: str, features: frozenset[str]
) -> Sequence[Row]:
    """Opens a split of a dataset for random access."""
    if not (directory / 'dataset_info.json').is_file():
        raise ValueError(f'{directory} holds no prepared dataset (no dataset_info.json); expected '
                         'a JSON file or a directory like DIR/NAME/1.0.0')
    import tensorflow_datasets as tfds  # Slow to import.

    builder = tfds.builder_from_directory(directory)
    splits = builder.info.splits
    if set(builder.info.features) != features:
        raise ValueError(f'{source}: expected a dataset with the features {sorted(features)}, '
                         f'but {builder.info.full_name} has {sorted(builder.info.features)}')
    if not split and len(splits) != 1:
        raise ValueError(f'{source}: has the splits {sorted(splits)}; say which one with '
                         f'{directory}:SPLIT')
    split = split or next(iter(splits))
    missing = [path for info in splits.values() for path in info.filepaths if not path.exists()]
    if missing:
        raise FileNotFoundError(f'{source}: {missing[0]} is missing')
    try:
        if not splits[split].num_examples:
            raise ValueError('holds nothing')
        rows = builder.as_data_source(split=split)
    except (KeyError, NotImplementedError, ValueError) as error:
        raise ValueError(f'{source}: {error}; there are the splits {sorted(splits)}') from error

    def read(index: int, _: int) -> Row:
        try:
            return rows[index]
        except Exception as error:  # Of many kinds, by what is wrong with the file.
            raise ValueError(f'{source}, record {index}: the dataset is damaged: {error}; '
                             'prepare it anew') from error

    return MappedSequence(range(len(rows)), read)


def _write(
    builder_class: Any, files: Mapping[str, Source], out: Source,
    rows_of: Callable[[Source], Iterable[Row]],
) -> Path:
    """Writes rows under a temporary name, which becomes the dataset's when it is whole."""
    import tensorflow_datasets as tfds  # Slow to import.

    for split in files:
        if not re.fullmatch(r'[A-Za-z]\w*', split) or split == 'all':
            raise ValueError(f'split: expected a name of letters, digits and _, got {split!r}')
    rows = {split: rows_of(file) for split, file in files.items()}
    builder = builder_class(rows=rows, data_dir=os.fspath(out), file_format='array_record')
    directory = Path(builder.data_dir)
    if directory.exists():
        raise FileExistsError(f'{directory}: is there already; delete it or choose another folder')
    for unfinished in directory.parent.glob(f'incomplete.*_{directory.name}'):
        shutil.rmtree(unfinished)  # Of a writer that was killed.
    with tempfile.TemporaryDirectory() as downloads:  # TFDS makes the folder, though it is unused.
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return directory


def _question_rows(file: Source) -> Iterator[Row]:
    examples = read_examples(file)
    questions = with_unique_uids(parse_examples(examples, file), file)
    if not questions:
        raise ValueError(f'{file}: holds no questions')
    for place, question in questions.items():
        example = examples[place]
        # `meta_info` stays as it is: page ids that are not in it follow from the
        # pages there are when the dataset is read.
        yield {
            'uid': question.uid,
            'query': question.query,
            'reference_answer': question.answer,
            'answer_aliases': list(question.aliases),
            'meta_info': json.dumps(example.get('meta_info') or {}, ensure_ascii=False),
            'evidence': json.dumps(example.get('evidence') or [], ensure_ascii=False),
        }


def _to_example(row: Row) -> dict[str, Any]:
    return {
        **{name: row[name].decode() for name in ('uid', 'query', 'reference_answer')},
        'answer_aliases': [alias.decode() for alias in row['answer_aliases']],
        'meta_info': json.loads(row['meta_info']),
        'evidence': json.loads(row['evidence']),
    }


class _ConversationRows:
    """Rows of a file of conversations; images are read while iterating."""

    def __init__(self, file: Source, image_root: str):
        self._file = Path(file)
        self._conversations = load_sharegpt(file)
        if not self._conversations:
            raise ValueError(f'{file}: holds no conversations')
        self._root = find_image_root(file, self._conversations, image_root)
        for index, conversation in enumerate(self._conversations):
            for name in conversation.images:
                if not (self._root / name).is_file():
                    raise FileNotFoundError(
                        f'{file}, record {index}: no image {self._root / name}')

    def __iter__(self) -> Iterator[Row]:
        for index, conversation in enumerate(self._conversations):
            yield {
                'messages': [dataclasses.asdict(message) for message in conversation.messages],
                'images': [{'file': name, 'data': self._image(index, name)}
                           for name in conversation.images],
            }

    def _image(self, index: int, name: str) -> bytes:
        """Returns the bytes of an image file, if it is one."""
        file = self._root / name
        data = file.read_bytes()
        try:
            check_image(io.BytesIO(data))
        except ValueError as error:
            raise ValueError(
                f'{self._file}, record {index}: {file} is not an image that can be read'
            ) from error
        return data


def _to_conversation(row: Row, where: str) -> Conversation:
    messages, images = row['messages'], row['images']
    conversation = parse_conversation({
        'messages': [{'role': role.decode(), 'content': content.decode()} for role, content
                     in zip(messages['role'], messages['content'], strict=True)],
        'images': [name.decode() for name in images['file']],
    }, where)
    return dataclasses.replace(conversation, encoded=tuple(images['data']))
