"""Makes a TFDS dataset of JSON files: `python -m vrag_jax.data.prepare --questions=FILE --out=DIR`.

`--conversations=FILE` takes SFT conversations, whose images become part of the
dataset. For several splits the flags are repeated:

    --questions=TRAIN.json --split=train --questions=TEST.json --split=test

`--prompt=FILE` writes the prompt that the conversations share, with `{question}` in it, for
`--config.prompt.file=FILE`; a `.json` file holds their system turn, too:

    python -m vrag_jax.data.prepare --conversations=SFT.json --prompt=prompt.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from vrag_jax.data.datasets import read_conversations, write_conversations, write_questions
from vrag_jax.data.prompt import QUESTION, common_prompt
from vrag_jax.data.records import split_system

_QUESTIONS = flags.DEFINE_multi_string('questions', [], 'Question file of a split.')
_CONVERSATIONS = flags.DEFINE_multi_string('conversations', [], 'ShareGPT file of a split.')
_SPLIT = flags.DEFINE_multi_string('split', ['train'], 'Name of the split of each file.')
_IMAGE_ROOT = flags.DEFINE_string(
    'image_root', '', 'Folder that images of conversations are relative to; unless given that of '
    'their file or the next one above it that holds them.')
_OUT = flags.DEFINE_string('out', None, 'Folder that the dataset is written to.')
_PROMPT = flags.DEFINE_string(
    'prompt', None, 'File that the prompt of the conversations is written to.')


def write_prompt(sources: Sequence[str], path: Path) -> None:
    """Writes the prompt that the conversations of some files share, and prints it.

    Raises:
      ValueError: if they have no prompt in common, or different system turns.
    """
    conversations = [c for source in sources for c in read_conversations(source)]
    openings = [split_system(conversation) for conversation in conversations]
    systems = {system for system, _ in openings}
    if len(systems) > 1:
        raise ValueError(f'{", ".join(sources)}: the conversations have {len(systems)} different '
                         'system turns; a prompt has one')
    try:
        prompt = common_prompt(
            (messages[0].content for _, messages in openings), *systems)
    except ValueError as error:
        raise ValueError(f'{", ".join(sources)}: {error}') from error
    if prompt.text == QUESTION:
        raise ValueError(f'{", ".join(sources)}: the first turns of the conversations begin and '
                         'end differently: there is no prompt around their questions')
    prompt.write(path)
    print(f'{path}: prompt of {len(conversations)} conversations: {prompt.text!r}'
          + (f', system turn {prompt.system!r}' if prompt.system is not None else ''))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f'unexpected arguments: {argv[1:]}')
    if bool(_QUESTIONS.value) == bool(_CONVERSATIONS.value):
        sys.exit('pass either --questions or --conversations')
    if _PROMPT.value and not _CONVERSATIONS.value:
        sys.exit('--prompt is of conversations: pass --conversations')
    if not _OUT.value and not _PROMPT.value:
        sys.exit('pass --out=DIR for a dataset, or --prompt=FILE for the prompt of conversations')
    if _PROMPT.value:
        try:
            write_prompt(_CONVERSATIONS.value, Path(_PROMPT.value))
        except (OSError, ValueError) as error:
            sys.exit(str(error))
    if not _OUT.value:
        return
    files, splits = _QUESTIONS.value or _CONVERSATIONS.value, _SPLIT.value
    if len(set(splits)) != len(splits) or len(splits) != len(files):
        sys.exit(f'{len(files)} files and the splits {splits}: pass one --split a file, all '
                 'different')
    if _QUESTIONS.value and _IMAGE_ROOT.value:
        sys.exit('--image_root is for the images of --conversations')
    sources = dict(zip(splits, files, strict=True))
    try:
        if _QUESTIONS.value:
            directory = write_questions(sources, _OUT.value)
        else:
            directory = write_conversations(sources, _OUT.value, _IMAGE_ROOT.value)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(directory)


if __name__ == '__main__':
    app.run(main)
