"""What a judge model is asked, and how its reply is read."""

import dataclasses
import re

PROMPT = """\
You grade an answer to a question. Compare it with the reference answers; wording, units and \
formatting may differ, facts and numbers may not.

Question: {question}
Reference answers: {references}
Answer to grade: {answer}

Reply with one word, CORRECT or INCORRECT."""

_FIELDS = ('question', 'references', 'answer')
_PLACEHOLDER = re.compile(r'\{([A-Za-z_]+)\}')

# Both words offered as a choice are the task repeated, no verdict.
_CHOICE = re.compile(r'(?<![a-z])correct\W+(?:or|/|and)\W+incorrect(?![a-z])', re.IGNORECASE)
# What may stand between a negation and the verdict: 'not entirely correct', 'is not a correct'.
_BETWEEN = (r'(?:(?:(?!only)\w+ly|an?|the|be|is|was|it|this|that|quite|at|all|100|yet|as|sure|'
            r'certain|say|think|call|considere?d?|called|deemed|judged|marked|graded)[\s%_*-]+)*')
_VERDICT = re.compile(
    r"(?P<negated>(?:\b(?:not|non|cannot|never|neither|nor|hardly)|n['\u2019]t)[\s_*-]+"
    rf'{_BETWEEN})?'
    r'(?P<partly>(?<![a-z])(?:partially|partly|half|semi|almost|nearly|mostly|somewhat)[\s_*-]+)?'
    r'(?<![a-z])(?P<opposite>in)?correct(?![a-z])'
    r'(?P<denied>["\u201d*_]*\s*[:=?]\s*["\u201c*_]*(?:no|false|0)\b)?', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """The text that is sent for an answer.

    Attributes:
      text: holds `{references}` and `{answer}`, and mostly `{question}`; other braces stay as
        they are.
    """

    text: str = PROMPT

    def __post_init__(self):
        found = set(_PLACEHOLDER.findall(self.text))
        for name in ('references', 'answer'):
            if name not in found:
                raise ValueError(f'prompt: does not hold {{{name}}}')
        for name in sorted(found - set(_FIELDS)):
            raise ValueError(f'prompt: holds {{{name}}}; known are '
                             + ', '.join(f'{{{field}}}' for field in _FIELDS))

    def fill(self, question: str, references: str, answer: str) -> str:
        """Returns the text about an answer; braces in what is filled in are text."""
        values = {'question': question, 'references': references, 'answer': answer}
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.text)


@dataclasses.dataclass(frozen=True)
class VerdictPattern:
    """Where a reply says that an answer is right or wrong; the last place counts.

    Attributes:
      correct: regular expression of a verdict that the answer is right; '' reads CORRECT,
        whatever its case, unless it is negated ('not correct', 'partially correct').
      incorrect: of one that it is wrong. Where both end at the same place it counts.
    """

    correct: str = ''
    incorrect: str = ''

    def __post_init__(self):
        if bool(self.correct) != bool(self.incorrect):
            raise ValueError('correct and incorrect: give both or neither')
        for name in ('correct', 'incorrect'):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f'{name}: not a regular expression: {error}') from error

    def read(self, reply: str) -> bool | None:
        """Returns whether a reply says that the answer is right; None if it does not say."""
        if not self.correct:
            return _read_words(reply)
        found = [(match.end(), not right) for pattern, right in (
            (self.correct, True), (self.incorrect, False)) for match in re.finditer(pattern, reply)]
        return not max(found)[1] if found else None


def _read_words(reply: str) -> bool | None:
    verdicts = list(_VERDICT.finditer(_CHOICE.sub(' ', reply)))
    if not verdicts:
        return None
    last = verdicts[-1]
    if last['partly'] and not last['opposite']:
        return False
    wrong = sum(last[name] is not None for name in ('negated', 'opposite', 'denied')) % 2
    return not wrong
