"""Held-out evaluation of a policy, and of vanilla RAG with it."""

import dataclasses
from collections.abc import Sequence

import jax
from tqdm import tqdm

from vrag_jax.data.records import Question
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.processes import merge_shares, share
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.context import RolloutContext
from vrag_jax.rollout.driver import World, episode_seed, run_policy
from vrag_jax.rollout.scoring import refuse_if_all_failed, score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.sampling.distribution import SamplingConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation.

    Attributes:
      questions: how many test questions; 0 takes all.
      sampling: how trajectories are drawn.
      vanilla_pages: pages that vanilla RAG retrieves with the question.
      report_trajectories: how many are drawn in the report.
    """

    questions: int = 240
    sampling: SamplingConfig = SamplingConfig()
    vanilla_pages: int = 1
    report_trajectories: int = 12


class Evaluation:
    """Samples one trajectory a question and scores it; a bar shows how far it is.

    Args:
      context: the run.
      config: how many questions, and how tokens are drawn.
      reward: what trajectories earn.
      questions: held out; every row of the table is measured on the same ones.
    """

    def __init__(self, context: RolloutContext, config: EvaluationConfig, reward: RewardConfig,
                 questions: Sequence[Question]):
        self._context, self._config, self._reward = context, config, reward
        self._questions = questions[:config.questions] if config.questions else questions

    def policy(self, params: Params, world: World,
               sampling: SamplingConfig | None = None) -> list[Trajectory]:
        """Measures a policy.

        Args:
          params: its weights.
          world: where the episodes take place.
          sampling: how tokens are drawn; None is as the config says.

        Returns:
          Scored trajectories in the order of the questions, `without_tensors`.

        Raises:
          JudgeError: if a judge model gave no verdict on any answer.
        """
        return self._play(params, world, sampling or self._config.sampling)

    def vanilla_rag(self, params: Params, world: World) -> list[Trajectory]:
        """Measures vanilla RAG: `config.vanilla_pages` pages are retrieved with the question
        itself, and the policy's first turn must answer. See `policy`; of no page, it is that."""
        pages = self._config.vanilla_pages
        if not pages:
            return self.policy(params, world)
        environment = world.environment.with_config(max_turns=pages + 1)
        return self._play(params, dataclasses.replace(world, environment=environment),
                          self._config.sampling, ('<search>{question}</search>',) * pages)

    def _play(self, params: Params, world: World, sampling: SamplingConfig,
              opening: tuple[str, ...] = ()) -> list[Trajectory]:
        context, questions = self._context, self._questions
        # The buffer may hold features of another policy's vision tower.
        context.clear_features()
        seeds = [episode_seed(context.seed, 'evaluate', q.uid) for q in questions]
        own = share(questions)
        with tqdm(total=len(own), desc='evaluating', unit='question', mininterval=5,
                  disable=jax.process_index() > 0) as bar:

            def keep(trajectory: Trajectory) -> Trajectory:
                bar.update()
                return trajectory.without_tensors()

            played = run_policy(
                world, context.sampler, context.features, context.for_sampling(params),
                [questions[i] for i in own], sampling, [seeds[i] for i in own], opening, keep=keep)
        context.sampler.release()
        score(played, self._reward, context.judge)
        merged = merge_shares(played, len(questions))
        refuse_if_all_failed(merged, context.judge)
        return merged
