"""A task from outside the package: counts the questions of a split, by words."""

import dataclasses
import json

from vrag_jax.run.context import RunContext
from vrag_jax.run.task import Task


@dataclasses.dataclass(frozen=True)
class CountQuestionsConfig:
    """The section `config.count_questions`.

    Attributes:
      split: 'train', 'validation' or 'test'.
      most_words: longer questions are left out.
    """

    split: str = 'train'
    most_words: int = 100

    def __post_init__(self):
        if self.most_words < 1:
            raise ValueError(f'most_words must be positive, got {self.most_words}')


def run(context: RunContext) -> None:
    """Writes how many questions have how many words to `workdir/questions.json`."""
    config = context.config.section(CountQuestionsConfig)
    lengths = [len(question.query.split()) for question in context.corpus.questions[config.split]]
    counts = {n: lengths.count(n) for n in sorted(set(lengths)) if n <= config.most_words}
    (context.workdir / 'questions.json').write_text(json.dumps(counts))


TASK = Task(run, settings=CountQuestionsConfig, policy=False, mesh=False)
