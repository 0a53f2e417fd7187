"""Makes a TFDS dataset of JSON files: `python -m vrag_jax.data.prepare --questions=FILE --out=DIR`.

`--conversations=FILE` takes SFT conversations, whose images become part of the
dataset. For several splits the flags are repeated:

    --questions=TRAIN.json --split=train --questions=TEST.json --split=test
"""

import sys

from absl import app, flags

from vrag_jax.data.datasets import write_conversations, write_questions

_QUESTIONS = flags.DEFINE_multi_string('questions', [], 'Question file of a split.')
_CONVERSATIONS = flags.DEFINE_multi_string('conversations', [], 'ShareGPT file of a split.')
_SPLIT = flags.DEFINE_multi_string('split', ['train'], 'Name of the split of each file.')
_OUT = flags.DEFINE_string('out', None, 'Folder that the dataset is written to.', required=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f'unexpected arguments: {argv[1:]}')
    if bool(_QUESTIONS.value) == bool(_CONVERSATIONS.value):
        sys.exit('pass either --questions or --conversations')
    files, splits = _QUESTIONS.value or _CONVERSATIONS.value, _SPLIT.value
    if len(set(splits)) != len(splits) or len(splits) != len(files):
        sys.exit(f'{len(files)} files and the splits {splits}: pass one --split a file, all '
                 'different')
    write = write_questions if _QUESTIONS.value else write_conversations
    try:
        directory = write(dict(zip(splits, files, strict=True)), _OUT.value)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(directory)


if __name__ == '__main__':
    app.run(main)
