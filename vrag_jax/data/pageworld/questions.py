"""Questions on the pages of a document, with their answers, evidence and programs.

A question's `extra` is its program, from which an expert can find the answer:
`kind`, `document`, `topic`, and as far as the kind has them `heading` or
`position`, `column`, and `target_topic` and `target_heading` of the second page.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping

from vrag_jax.data.pageworld.config import COLUMNS, QUESTION_TYPES
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.data.records import Evidence, Question

_WORDINGS: dict[str, tuple[str, ...]] = {
    'text': (
        'what number is in panel {heading} on the {topic} page of {document}?',
        'panel {heading} on the {topic} page of {document}: what number?',
        'on the {topic} page of {document}, what number is in panel {heading}?'),
    'table': (
        'what is in column {column} of panel {heading} on the {topic} page of {document}?',
        'panel {heading} on the {topic} page of {document}: what is in column {column}?',
        'on the {topic} page of {document}, what is in column {column} of panel {heading}?'),
    'chart': (
        'what is bar {column} of panel {heading} on the {topic} page of {document}?',
        'panel {heading} on the {topic} page of {document}: what is bar {column}?',
        'on the {topic} page of {document}, what is bar {column} of panel {heading}?'),
    'position': (
        'what number is in the {position} panel on the {topic} page of {document}?',
        '{position} panel on the {topic} page of {document}: what number?',
        'on the {topic} page of {document}, what number is in the {position} panel?'),
    'layout': (
        'which panel is {position} on the {topic} page of {document}?',
        '{position} on the {topic} page of {document}: which panel?',
        'on the {topic} page of {document}, which panel is {position}?'),
    'multi_hop': (
        'panel {heading} on the {topic} page of {document} names a panel on the '
        '{target_topic} page: what number is in it?',
        'what number is in the panel on the {target_topic} page of {document} that panel '
        '{heading} on the {topic} page names?'),
}
_SOURCES = {'text': 'Text', 'table': 'Table', 'chart': 'Chart', 'position': 'Layout',
            'layout': 'Layout', 'multi_hop': 'Text'}
_PANEL_KINDS = {'text': 'text', 'table': 'table', 'chart': 'chart', 'position': 'text',
                'multi_hop': 'pointer'}


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A question that could be asked: its program, answer and what shows it."""

    program: Mapping[str, str]
    answer: str
    shown: tuple[tuple[PageSpec, PanelSpec], ...]


def question_types(count: int, shares: Mapping[str, float], rng: random.Random) -> list[str]:
    """Returns `count` types in random order, as near to their shares as whole numbers go."""
    exact = {name: count * share for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    missing = count - sum(counts.values())
    for name in sorted(exact, key=lambda n: counts[n] - exact[n])[:missing]:
        counts[name] += 1
    types = [name for name, number in counts.items() for _ in range(number)]
    rng.shuffle(types)
    return types


def sample_questions(
    documents: list[list[PageSpec]], count: int, shares: Mapping[str, float], rng: random.Random
) -> list[Question]:
    """Draws questions evenly over documents, none of them twice.

    Args:
      documents: pages of each document.
      count: how many questions; the first `count % len(documents)` documents
        have one more than the others.
      shares: of the question types.
      rng: source of randomness.

    Raises:
      ValueError: if the documents cannot give that many different questions.
    """
    pools = [_Pool(pages, rng) for pages in documents]
    questions: list[Question] = []
    for index, kind in enumerate(question_types(count, shares, rng)):
        # A document that has no more questions of a kind hands over to the next.
        for step in range(len(pools)):
            candidate = pools[(index + step) % len(pools)].take(kind)
            if candidate is not None:
                questions.append(_question(candidate, rng))
                break
        else:
            raise ValueError(f'{len(documents)} documents have fewer different questions of '
                             f'type {kind!r} than {count} questions with these shares need')
    numbers: dict[str, int] = {}
    numbered = []
    for question in questions:
        document = question.extra['document']
        numbers[document] = numbers.get(document, 0) + 1
        numbered.append(dataclasses.replace(question, uid=f'{document}_q{numbers[document]}'))
    return numbered


class _Pool:
    """The questions of a document that have not been asked yet."""

    def __init__(self, pages: list[PageSpec], rng: random.Random):
        self._left: dict[str, list[_Candidate]] = {}
        for kind in QUESTION_TYPES:
            candidates = list(_candidates(pages, kind))
            rng.shuffle(candidates)
            self._left[kind] = candidates

    def take(self, kind: str) -> _Candidate | None:
        return self._left[kind].pop() if self._left[kind] else None


def _candidates(pages: list[PageSpec], kind: str) -> Iterator[_Candidate]:
    """Yields every question of a type that the pages can answer."""
    for page in pages:
        for panel in page.panels:
            if kind != 'layout' and panel.kind != _PANEL_KINDS[kind]:
                continue
            program = {'kind': kind, 'document': page.document, 'topic': page.topic}
            if kind in ('position', 'layout'):
                program['position'] = panel.position
            else:
                program['heading'] = panel.heading
            if kind == 'layout':
                yield _Candidate(program, panel.heading, ((page, panel),))
            elif kind in ('table', 'chart'):
                for column, cell in zip(COLUMNS, panel.cells, strict=True):
                    yield _Candidate({**program, 'column': column}, cell, ((page, panel),))
            elif panel.target is not None:
                second = pages[panel.target[0] - 1]
                target = second.panel(panel.target[1])
                program |= {'target_topic': second.topic, 'target_heading': target.heading}
                yield _Candidate(program, target.text, ((page, panel), (second, target)))
            else:
                yield _Candidate(program, panel.text, ((page, panel),))


def _question(candidate: _Candidate, rng: random.Random) -> Question:
    program = candidate.program
    wording = rng.choice(_WORDINGS[program['kind']])
    # What shows the answer of a layout question is the heading, not the body.
    evidence = tuple(
        Evidence(page.page_id,
                 panel.heading_box if program['kind'] == 'layout' else panel.body_box)
        for page, panel in candidate.shown)
    return Question(
        uid='',
        query=wording.format(**program),
        answer=candidate.answer,
        file_name=f'{program["document"]}.pdf',
        reference_pages=tuple(page.page for page, _ in candidate.shown),
        page_ids=tuple(page.page_id for page, _ in candidate.shown),
        source_type=_SOURCES[program['kind']],
        query_type='Multi-Hop' if len(candidate.shown) > 1 else 'Single-Hop',
        language='en',
        evidence=evidence,
        extra=dict(program),
    )
