"""What the benchmarks measure: a run's exported policy in its own PageWorld."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vrag_jax.config import parse
from vrag_jax.data.records import Question
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig

# Not named as the flags of `vrag_jax.main`, beside which a test may import this.
WORKDIR = flags.DEFINE_string('run', 'runs/tiny', 'Folder of a finished run.')
CONFIG = flags.DEFINE_string('run_config', 'configs/tiny.py', 'Config file of that run.')

CHECKPOINT = 'policy'  # Where in its folder a run leaves the exported policy.


def open_run(workdir: Path, config_file: Path) -> RunContext:
    """Returns the workspace of a finished run, whose policy is the exported one.

    Both sides of a pair open it: pages, index, questions and tokenizer are the same.

    Args:
      workdir: of the run, e.g. `runs/tiny` after `make run`.
      config_file: of the run; what it says of data and sizes must not have changed since.

    Raises:
      FileNotFoundError: if there is no exported policy.
    """
    checkpoint = workdir / CHECKPOINT
    if not (checkpoint / 'config.json').is_file():
        raise FileNotFoundError(
            f'{checkpoint} holds no exported policy: finish the run first (make run)')
    spec = importlib.util.spec_from_file_location('benchmark_config', config_file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f'{config_file} is no config file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.policy.checkpoint = str(checkpoint)
    return RunContext(parse(RunConfig, config), workdir)


def grouped_questions(space: RunContext, prompts: int, group_size: int) -> list[Question]:
    """Returns the first `prompts` training questions, each `group_size` times in a row."""
    questions = space.corpus.questions['train']
    if prompts > len(questions):
        raise ValueError(f'prompts = {prompts}, but there are {len(questions)} training questions')
    return [question for question in questions[:prompts] for _ in range(group_size)]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first token in which two trajectories of a question differ.

    Attributes:
      episode: index of the question.
      position: index of the token.
      ours, theirs: token ids there, -1 where a trajectory has ended.
    """

    episode: int
    position: int
    ours: int
    theirs: int


def differences(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> list[Difference]:
    """Compares trajectories token by token.

    Args:
      ours, theirs: token ids of each episode's whole trajectory, in the same order.

    Returns:
      One `Difference` for each episode that is not identical.
    """
    found = []
    for episode, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if list(a) != list(b):
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                      min(len(a), len(b)))
            found.append(Difference(episode, at, *(
                int(tokens[at]) if at < len(tokens) else -1 for tokens in (a, b))))
    return found
