"""Trajectories of experts whose answers are right: what supervised fine-tuning imitates."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from vrag_jax.data.order import host_rng
from vrag_jax.data.pageworld.layout import PageSpec
from vrag_jax.data.records import Question
from vrag_jax.experts.evidence import EvidenceExpert
from vrag_jax.experts.scripted import STYLES, ExpertState, ScriptedExpert
from vrag_jax.rewards.judge import AnswerJudge
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.driver import run_expert
from vrag_jax.rollout.scoring import score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Lets experts answer questions, and keeps what they get right.

    Attributes:
      questions: of the training split.
      layouts: what stands on each page of a PageWorld, by page id.
      reward: what trajectories earn.
      judge: judges the answers.
      max_length: most tokens of an episode.
      seed: of the run.
    """

    questions: Sequence[Question]
    layouts: Mapping[str, PageSpec]
    reward: RewardConfig
    judge: AnswerJudge
    max_length: int
    seed: int

    def scripted(self, world: World, shares: Mapping[str, float], count: int) -> list[Trajectory]:
        """Samples trajectories of several scripted experts.

        Args:
          world: where the episodes take place.
          shares: share of each style of expert.
          count: episodes to play.

        Returns:
          Finished trajectories whose answers are right, in random order.
        """
        rng = host_rng(self.seed, 'experts', 0)
        order = [self.questions[i % len(self.questions)] for i in range(count)]
        styles = rng.choice(list(shares), size=count, p=list(shares.values()))
        kept: list[Trajectory] = []
        for style in shares:
            mine = [q for q, s in zip(order, styles, strict=True) if s == style]
            right = self._play(world, mine, ScriptedExpert(self.layouts, STYLES[style], self.seed))
            _LOG.info('expert %s: %d of %d trajectories are right', style, len(right), len(mine))
            kept += right
        rng.shuffle(kept)  # type: ignore[arg-type]
        return kept

    def with_evidence(self, world: World) -> list[Trajectory]:
        """Plays the expert that knows the evidence boxes of the questions.

        Returns:
          Trajectories with the right answer, in the order of the questions.
        """
        questions = [q for q in self.questions if q.evidence]
        trajectories = self._play(world, questions, EvidenceExpert())
        _LOG.info('evidence expert: %d of %d trajectories are right', len(trajectories),
                  len(questions))
        return trajectories

    def _play(self, world: World, questions: Sequence[Question],
              expert: ScriptedExpert | EvidenceExpert) -> list[Trajectory]:
        """Lets an expert play one episode a question; returns those answered right."""
        trajectories = run_expert(
            world, questions,
            lambda question, episode: expert.act(question, ExpertState.of(episode)),
            self.max_length)
        score(trajectories, self.reward, self.judge)
        return [t for t in trajectories if t.answer_score == 1.0]
