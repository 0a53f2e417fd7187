"""Held-out evaluation of a policy, and of vanilla RAG with it."""

import dataclasses
from collections.abc import Sequence

import jax
from tqdm import tqdm

from vrag_jax.data.records import Question
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.processes import merge_shares, share
from vrag_jax.rollout.driver import World, episode_seed, run_policy
from vrag_jax.rollout.scoring import refuse_if_all_failed, score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.run.context import RunContext
from vrag_jax.sampling.distribution import SamplingConfig


def test_questions(space: RunContext) -> list[Question]:
    """Returns the held-out questions that every row of the table is measured on."""
    questions = space.corpus.questions['test']
    limit = space.config.evaluation.questions
    return questions[:limit] if limit else questions


def evaluate(
    space: RunContext, params: Params, world: World, questions: Sequence[Question],
    vanilla_pages: int = 0, sampling: SamplingConfig | None = None,
) -> list[Trajectory]:
    """Samples one trajectory a question and scores it; a bar shows how far it is.

    Args:
      space: the run.
      params: the policy's weights.
      world: where the episodes take place.
      questions: what is asked.
      vanilla_pages: if positive, vanilla RAG: so many pages are retrieved with
        the question itself, and the policy's first turn must answer.
      sampling: how tokens are drawn; None takes `config.evaluation.sampling`.

    Returns:
      Scored trajectories in the order of the questions, `without_tensors`.

    Raises:
      JudgeError: if a judge model gave no verdict on any answer.
    """
    opening: tuple[str, ...] = ()
    if vanilla_pages:
        environment = world.environment.with_config(max_turns=vanilla_pages + 1)
        world = dataclasses.replace(world, environment=environment)
        opening = ('<search>{question}</search>',) * vanilla_pages
    # The buffer may hold features of another policy's vision tower.
    space.clear_features()
    seeds = [episode_seed(space.config.seed, 'evaluate', q.uid) for q in questions]
    own = share(questions)
    with tqdm(total=len(own), desc='evaluating', unit='question', mininterval=5,
              disable=jax.process_index() > 0) as bar:

        def keep(trajectory: Trajectory) -> Trajectory:
            bar.update()
            return trajectory.without_tensors()

        played = run_policy(
            world, space.sampler, space.features, space.for_sampling(params),
            [questions[i] for i in own], sampling or space.config.evaluation.sampling,
            [seeds[i] for i in own], opening, keep=keep)
    space.sampler.release()
    score(played, space.config.reward, space.judge)
    merged = merge_shares(played, len(questions))
    refuse_if_all_failed(merged, space.judge)
    return merged
