"""The prompt of a policy: what stands around a question, and the system turn before it.

A policy that was fine-tuned on one prompt is at a loss with another, and nothing fails
that would say so. So the prompt is kept with the policy (`PROMPT_FILE` in its directory),
read off the conversations that it is fine-tuned on, and compared wherever it is used.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

QUESTION = '{question}'
PROMPT_FILE = 'prompt.json'

# Up to where a sentence ends, a line, a tag, or what a colon announces, and an opened quote.
_BEFORE = re.compile(
    r'.*(?:[.!?]\s+|[:\n>\])\u3002\uff1a\uff01\uff1f]\s*)["\u201c\u300c]?', re.DOTALL)
# From where a line, a tag or, after a sentence, more begins, and a closed quote.
_AFTER = re.compile(
    r'["\u201d\u300d]?\s*[\n<\[]|["\u201d\u300d]\s*$|(?<=[.!?])\s|(?<=[\u3002\uff01\uff1f])')


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a policy is asked with.

    Attributes:
      text: of the question's turn, with `{question}` once.
      system: text of the system turn; None leaves it to the chat template.
    """

    text: str = QUESTION
    system: str | None = None

    def __post_init__(self):
        if self.text.count(QUESTION) != 1:
            raise ValueError(f"a prompt must hold '{QUESTION}' once, got {self.text!r}")

    @property
    def before(self) -> str:
        """What stands before the question."""
        return self.text.partition(QUESTION)[0]

    @property
    def after(self) -> str:
        """What stands after the question."""
        return self.text.partition(QUESTION)[2]

    def fill(self, question: str) -> str:
        """Returns the text of the turn that asks a question."""
        return f'{self.before}{question}{self.after}'

    def matches(self, text: str) -> bool:
        """Whether a turn's text is this prompt around some question."""
        return (len(text) > len(self.before) + len(self.after)
                and text.startswith(self.before) and text.endswith(self.after))

    def write(self, path: str | os.PathLike) -> None:
        """Writes a file that `read_prompt` reads: JSON, or the text alone as `.txt`.

        Raises:
          ValueError: for a text file, if there is a system turn, which it cannot hold.
        """
        path = Path(path)
        if path.suffix != '.json':
            if self.system is not None:
                raise ValueError(f'{path}: the prompt has a system turn, {self.system!r}, which a '
                                 'text file cannot hold; name a .json file')
            path.write_text(self.text, encoding='utf-8')
            return
        fields = {name: value for name, value in dataclasses.asdict(self).items()
                  if value is not None}
        path.write_text(json.dumps(fields, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """What questions are asked with.

    A policy that was fine-tuned keeps its prompt in its directory (`data.prompt.PROMPT_FILE`).
    Where neither `text` nor `file` is given it gets that one; SFT on conversations takes the
    prompt that these begin with.

    Attributes:
      text: of the question's turn, with `{question}` once, and `{actions}` where a line about
        each action shall stand; '' leaves it to `file`, the policy or the conversations.
      file: a file with that text, or a `.json` with `text` and `system`.
      system: text of the system turn; '' leaves it to `file`, the policy, or the chat template.
      fallback: text for a policy that brings none; '' refuses such a policy.
      may_differ: whether a policy may get another prompt than it was fine-tuned on.
    """

    text: str = ''
    file: str = ''
    system: str = ''
    fallback: str = QUESTION
    may_differ: bool = False

    def __post_init__(self):
        if self.text and self.file:
            raise ValueError('text and file are both given; pass one of them')
        for name in ('text', 'fallback'):
            value = getattr(self, name)
            if value and value.count(QUESTION) != 1:
                raise ValueError(f"{name} must hold '{QUESTION}' once, got {value!r}")


def read_prompt(path: str | os.PathLike) -> Prompt:
    """Reads a prompt: a `.json` file with `text` and perhaps `system`, or a text with `{question}`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds something else; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such prompt file')
    try:
        text = path.read_text(encoding='utf-8')
        if path.suffix != '.json':
            return Prompt(text)
        fields = json.loads(text)
        known = isinstance(fields, dict) and 'text' in fields and not (
            fields.keys() - {'text', 'system'})
        if not known or not all(isinstance(value, str) for value in fields.values()):
            raise ValueError(f"expected {{'text': ..., 'system': ...}}, got {fields!r}")
        return Prompt(**fields)
    except ValueError as error:  # Also of JSON and of UTF-8.
        raise ValueError(f'{path}: {error}') from error


def common_prompt(texts: Iterable[str], system: str | None = None) -> Prompt:
    """Returns the prompt that texts of first turns share: their common beginning and end.

    Both are cut back to where a sentence, a line or a tag ends, because questions, too, begin
    and end alike.

    Args:
      texts: of first turns, each with a question of its own.
      system: of the prompt.

    Raises:
      ValueError: if there are fewer than two different texts, of which nothing can be told.
    """
    different = sorted(set(texts))
    if len(different) < 2:
        raise ValueError('a prompt is told from two different questions or more, got '
                         f'{len(different)}')
    # What the first and the last in order share, all share.
    before = os.path.commonprefix([different[0], different[-1]])
    cut = _BEFORE.match(before)
    before = cut[0] if cut else ''
    rests = sorted((text[len(before):] for text in different), key=lambda text: text[::-1])
    after = os.path.commonprefix([rests[0][::-1], rests[-1][::-1]])[::-1]
    # A question keeps its own last word and mark.
    if all(_ends_sentence(rest[:-len(after)]) for rest in rests) and after[:1].isspace():
        start = 0
    else:
        found = _AFTER.search(after)
        start = found.start() if found else len(after)
    after = after[start:]
    if QUESTION in before + after:
        raise ValueError(f"what all first turns share holds '{QUESTION}' itself: "
                         f'{before + after!r}')
    return Prompt(before + QUESTION + after, system)


def _ends_sentence(text: str) -> bool:
    return text.endswith(('.', '!', '?'))


def difference(one: Prompt, other: Prompt) -> str:
    """Shows both of two prompts where they begin to differ, for a message; '' if they are equal."""
    if one == other:
        return ''
    if one.system != other.system:
        return f'system turns {_shown(one.system, 0)} and {_shown(other.system, 0)}'
    at = len(os.path.commonprefix([one.text, other.text]))
    return f'{_shown(one.text, at)} and {_shown(other.text, at)}'


def _shown(text: str | None, at: int, width: int = 60) -> str:
    """A part of a text, in quotes, around a place."""
    if text is None:
        return "(the template's own)"
    start, end = max(0, at - width // 2), at + width
    return repr(f'{"…" if start else ""}{text[start:end]}{"…" if end < len(text) else ""}')
