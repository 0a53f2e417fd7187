"""The judge model's prompt, and how its verdict is parsed."""

import dataclasses
import re
import unicodedata

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
_CHOICE = re.compile(r'\b(?:in)?correct\W+(?:or|/|and)\W+(?:in)?correct\b')
# 'correct: no', '{"correct": false}', 'correct - yes', 'Correct? Yes'.
_FIELD = re.compile(
    r'\b(?P<opposite>in)?correct\W*(?:[:=?]|\s[-\u2013\u2014])\W*'
    r'(?P<value>true|yes|false|no|0|1)\W*(?=$|[\n,}])')
_SENTENCE = re.compile(r'(?<=[.!?])\s+|[\n;]+|\.{2,}')
# What may stand before a verdict that is a sentence by itself.
_LEAD = re.compile(
    r'^(?:(?:no|yes|well|actually|so|thus|therefore|hence|but|final|overall|my|the|an?|verdict|'
    r'grade|judge?ment|result|conclusion|rating|answer|is|it|this|that|only|not only)\b'
    r'[\s:,=-]*)+')
# A verdict, and after it at most what explains it behind a mark.
_BARE = re.compile(r'^(?P<word>correct|incorrect|wrong|false)(?=$|[,:]|\s*\(|\s*[-\u2013\u2014]\s)')
# A word that something is said to be: 'is correct', not 'the correct answer'.
_SAID = re.compile(
    r'\b(?P<word>correct|incorrect|wrong|false)\b(?!\s+(?:answers?|ones?|value|number|response|'
    r'reference|option|result|name|year|date|figure|solution|choice|label|page)s?\b)')
_NEGATION = re.compile(
    r"\b(?:not|non|no|none|never|neither|nor|nothing|cannot|cant|hardly|scarcely|barely|without|"
    r"fails?|failed|far from|anything but|unlikely|doubt\w*|deny|denies|instead of|unless|if|"
    r"whether|would|should|could|might|(?:is|are|was|do|does|did|ca|wo)n.?t)\b|\b\w+n[^\w\s]t\b")
_PARTLY = re.compile(
    r'\b(?:partial(?:ly)?|partly|half|semi|almost|nearly|mostly|somewhat|close to)\b')
# Negations that deny nothing.
_ASIDE = re.compile(r'\b(?:(?:there is |i have )?(?:no|without(?: an?y?)?) doubts?|not only)\b')


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
    """Reads a reply sentence by sentence; where it is not clear, there is no verdict.

    What decides is the last of: a field ('"correct": false'), a sentence that is a verdict
    ('INCORRECT. ...', 'Verdict: correct'). Without one, the last sentence that says of
    something that it is right or wrong, and not 'the correct answer'.
    """
    text = _plain(reply)
    fields = list(_FIELD.finditer(text))
    if fields:
        yes = fields[-1]['value'] in ('true', 'yes', '1')
        return yes != bool(fields[-1]['opposite'])
    bare: list[bool] = []
    said: list[bool | None] = []
    for sentence in _SENTENCE.split(text):
        sentence = sentence.strip(' .!,:-')
        if not sentence or sentence.endswith('?'):
            continue
        verdict = _BARE.match(_LEAD.sub('', sentence))
        if verdict:
            bare.append(verdict['word'] == 'correct')
            continue
        after_mark = _BARE.match(re.split(r'[:,]\s+', sentence)[-1])
        if after_mark and after_mark.end() == len(re.split(r'[:,]\s+', sentence)[-1]) and not (
                _NEGATION.search(_ASIDE.sub(' ', sentence.rpartition(after_mark['word'])[0]))):
            bare.append(after_mark['word'] == 'correct')
            continue
        said += _said(sentence)
    if bare:
        return bare[-1]
    return said[-1] if said else None


def _plain(reply: str) -> str:
    """Lower case, without markup, quotes and the choice itself."""
    text = unicodedata.normalize('NFKC', reply).casefold()
    text = re.sub(r'[\u2018\u2019\u02bc`\u00b4]', "'", text).replace('_', ' ')
    text = re.sub(r'<[^<>]*>', '\n', text)
    text = re.sub(r'(?<=\w)-\s?(?=correct)', ' ', text.replace('in-correct', 'incorrect'))
    text = re.sub(r'[*"\u201c\u201d{}\[\]#]|(?<!\w)\'|\'(?!\w)', '', text)
    text = re.sub(r'\bnot\s+', 'not ', text)
    return _CHOICE.sub(' ', text).strip()


def _said(sentence: str) -> list[bool | None]:
    """What a sentence says of something: right, wrong, or nothing that is clear."""
    words = [match['word'] for match in _SAID.finditer(sentence)]
    if not words:
        partial = re.search(r'\bnot (?:an? )?(?:\w+ly )?correct\b', sentence)
        return [False] if partial else []
    negated = bool(_NEGATION.search(_ASIDE.sub(' ', sentence)))
    if set(words) == {'correct'}:
        return [not negated and not _PARTLY.search(sentence)]
    if 'correct' in words:
        return [None]
    if not negated:
        return [False]
    return [True] if re.search(r'\bnot (?:incorrect|wrong|false)\b', sentence) else [None]
