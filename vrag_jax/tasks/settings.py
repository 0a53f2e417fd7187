"""The typed form of a config: every section a frozen dataclass of its room."""

import dataclasses
import re

from vrag_jax.config import ConfigError
from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.learner.learner import LearnerConfig
from vrag_jax.learner.losses import GrpoLossConfig
from vrag_jax.learner.variants import ADVANTAGES
from vrag_jax.models.config import PRESETS
from vrag_jax.retrieval.ngram_encoder import NgramConfig
from vrag_jax.rewards.combine import RewardWeights
from vrag_jax.rewards.judge import OpenAIJudgeConfig
from vrag_jax.rollout.environment import EnvironmentConfig, Messages
from vrag_jax.rollout.world import ObservingConfig
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.slots import SamplerConfig

TASKS = ('loop', 'build_index', 'sft', 'grpo', 'evaluate', 'plan')
DTYPES = ('float32', 'bfloat16', 'float16')
REMAT = ('none', 'full', 'dots')
OLD_LOGPROBS = ('auto', 'sampler', 'learner')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1 for the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def sizes(self) -> dict[str, int]:
        return {'data': self.data, 'fsdp': self.fsdp, 'tensor': self.tensor}


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Which policy, and how it computes.

    Attributes:
      preset: sizes by name, e.g. 'tiny' or 'qwen2_5_vl_7b'.
      checkpoint: HF checkpoint directory with weights and tokenizer; '' starts
        from random weights and a tokenizer trained on PageWorld.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      remat: what is computed again in the backward pass.
      tokenizer_vocab: size of the tokenizer that is trained where there is no
        checkpoint.
    """

    preset: str = 'tiny'
    checkpoint: str = ''
    dtype: str = 'float32'
    param_dtype: str = 'float32'
    remat: str = 'none'
    tokenizer_vocab: int = 400

    def __post_init__(self):
        choices = {'preset': PRESETS, 'dtype': DTYPES, 'param_dtype': DTYPES, 'remat': REMAT}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name} must be one of {allowed}, got {getattr(self, name)!r}')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pages and questions come from.

    Questions and conversations are JSON files, or datasets that
    `vrag_jax.data.prepare` made of them, as `DIR/NAME/VERSION` or, where there are
    several splits, `DIR/NAME/VERSION:SPLIT`.

    Attributes:
      source: 'pageworld' (generated) or 'files'.
      pageworld: the generator's settings.
      manifest: manifest of the pages, for 'files'.
      train_questions: questions to train on, for 'files'.
      eval_questions: questions to evaluate on, for 'files'; '' uses the others.
      trajectories: SFT conversations (ShareGPT format), for the SFT of 'files'.
    """

    source: str = 'pageworld'
    pageworld: PageWorldConfig = PageWorldConfig()
    manifest: str = ''
    train_questions: str = ''
    eval_questions: str = ''
    trajectories: str = ''

    def __post_init__(self):
        if self.source not in ('pageworld', 'files'):
            raise ValueError(f"source must be 'pageworld' or 'files', got {self.source!r}")


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """The page index.

    Attributes:
      encoder: the text encoder of pages and queries.
      ocr: whether pages without text are read by OCR (extra `ocr`).
    """

    encoder: NgramConfig = NgramConfig()
    ocr: bool = False


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who judges answers: a model behind an OpenAI-compatible server, or exact match.

    Attributes:
      base_url: of the server, without '/v1'; '' judges by exact match after
        normalisation.
      model: name of the judge model.
      api_key_env: environment variable that holds the key; '' sends none.
      timeout_s: seconds to wait for a reply.
      attempts: most times that one answer is sent.
      concurrency: answers judged at the same time.
    """

    base_url: str = ''
    model: str = ''
    api_key_env: str = ''
    timeout_s: float = 60.0
    attempts: int = 4
    concurrency: int = 16

    def __post_init__(self):
        if self.base_url:
            self.server()

    def server(self) -> OpenAIJudgeConfig:
        """Returns the settings of the client; raises ValueError where they cannot work."""
        return OpenAIJudgeConfig(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of a policy that has no checkpoint, on PageWorld, easy to hard.

    Attributes:
      stages: one after the other, `(steps, queries, numbers, crops, headings,
        episodes)`: how many steps, and how many exercises of each kind a step:
        searches for a question, crops of plain numbers, crops of all kinds, pages
        whose headings are transcribed, whole episodes.
      learner: optimiser and shapes.
      save_every: steps between checkpoints.
    """

    stages: tuple[tuple[int, int, int, int, int, int], ...] = ()
    learner: LearnerConfig = LearnerConfig(lr=1e-3)
    save_every: int = 200

    def __post_init__(self):
        for stage in self.stages:
            if min(stage) < 0 or not stage[0] or not sum(stage[1:]):
                raise ValueError(f'stages: {stage} must have steps and exercises')

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage[0] for stage in self.stages)

    def exercises(self, step: int) -> tuple[int, ...]:
        """Returns how many exercises of each kind a step takes."""
        for steps, *counts in self.stages:
            if step < steps:
                return tuple(counts)
            step -= steps
        raise ValueError(f'pretraining has only {self.steps} steps')


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on expert trajectories.

    Attributes:
      steps: optimiser steps; 0 leaves it to `epochs`.
      epochs: passes over the trajectories.
      sequences: trajectories a step.
      trajectories: how many expert trajectories are sampled.
      careful, loose, hasty: shares of the experts' habits; must sum to 1.
      learner: optimiser and shapes.
      save_every: steps between checkpoints.
    """

    steps: int = 0
    epochs: int = 0
    sequences: int = 32
    trajectories: int = 3000
    careful: float = 0.25
    loose: float = 0.25
    hasty: float = 0.5
    learner: LearnerConfig = LearnerConfig(lr=1e-5)
    save_every: int = 100

    def __post_init__(self):
        total = self.careful + self.loose + self.hasty
        if abs(total - 1) > 1e-6:
            raise ValueError(f'careful + loose + hasty must be 1, got {total}')

    @property
    def shares(self) -> dict[str, float]:
        """Share of each expert."""
        return {'careful': self.careful, 'loose': self.loose, 'hasty': self.hasty}


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimisation.

    Attributes:
      steps: iterations of rollout and update; 0 leaves it to `epochs`.
      epochs: passes over the training questions.
      prompts: questions an iteration.
      group_size: trajectories a question.
      mini_batches: optimiser steps an iteration.
      sampling: how training trajectories are drawn.
      loss: clip bounds, coefficients, variants.
      advantages: 'group_normalised', 'group_mean' or 'leave_one_out'.
      old_logprobs: whose log-probs the ratio is taken to: those that the 'sampler'
        recorded, those that the 'learner' works out anew before the first update, or
        'auto', the sampler's if one update follows a rollout, else the learner's.
      dynamic_sampling: most rounds in which groups without spread are replaced.
      mask_truncated, mask_unfinished: whether trajectories that were cut off, or gave
        no answer, are left out of the loss (they count in their group's mean).
      overlap: whether the next rollout runs beside the update, with the weights
        before it. A run then does not repeat bit by bit.
      save_every: iterations between checkpoints.
    """

    steps: int = 0
    epochs: int = 0
    prompts: int = 32
    group_size: int = 5
    mini_batches: int = 2
    sampling: SamplingConfig = SamplingConfig()
    loss: GrpoLossConfig = GrpoLossConfig()
    advantages: str = 'group_normalised'
    old_logprobs: str = 'auto'
    dynamic_sampling: int = 0
    mask_truncated: bool = False
    mask_unfinished: bool = False
    overlap: bool = False
    save_every: int = 10

    def __post_init__(self):
        if self.group_size < 2:
            raise ValueError(
                f'group_size must be at least 2 (a group of one has no advantage), '
                f'got {self.group_size}'
            )
        if self.prompts < 1 or self.mini_batches < 1:
            raise ValueError('prompts and mini_batches must be positive')
        if (self.prompts * self.group_size) % self.mini_batches:
            raise ValueError(
                f'mini_batches = {self.mini_batches} does not divide prompts * group_size = '
                f'{self.prompts * self.group_size}'
            )
        if self.sampling.temperature == 0:
            raise ValueError('sampling.temperature must be positive: greedy groups have no spread')
        if self.dynamic_sampling < 0:
            raise ValueError(f'dynamic_sampling must not be negative, got {self.dynamic_sampling}')
        ADVANTAGES.check(self.advantages)
        if self.old_logprobs not in OLD_LOGPROBS:
            raise ValueError(
                f'old_logprobs must be one of {OLD_LOGPROBS}, got {self.old_logprobs!r}')
        capped, several = self.loss.importance_cap > 0, self.mini_batches > 1
        if capped and several and self.old_source == 'sampler':
            raise ValueError(
                "old_logprobs = 'sampler' leaves loss.importance_cap nothing to correct in "
                f"mini_batches = {self.mini_batches} updates; take 'learner'")
        if self.overlap and self.old_source == 'learner' and not capped:
            raise ValueError(
                "overlap needs the ratio to the policy that sampled: old_logprobs = 'sampler', "
                'or a positive loss.importance_cap')

    @property
    def old_source(self) -> str:
        """'sampler' or 'learner'."""
        if self.old_logprobs == 'auto':
            return 'sampler' if self.mini_batches == 1 else 'learner'
        return self.old_logprobs

    @property
    def old_is_current(self) -> bool:
        """Whether the old policy is the learner's own in the only update."""
        return (self.loss.importance_cap > 0 and self.mini_batches == 1
                and self.old_source == 'sampler')


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


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole config; see the sections.

    Attributes:
      task: which task runs.
      seed: seed of everything random.
      feature_rows: rows of the image feature buffer.
      feature_windows: attention windows encoded at a time; of several sizes the smallest
        that holds what is to be encoded.
      feature_span: attention windows that the largest image may take.
      evidence_sft: whether GRPO on files is preceded by SFT on an expert that knows
        the questions' evidence boxes (it searches, zooms into them, answers).
      instruction: text of the question's turn, with `{question}`.
    """

    task: str
    seed: int = 0
    feature_rows: int = 16384
    feature_windows: tuple[int, ...] = (64,)
    feature_span: int = 16
    evidence_sft: bool = False
    instruction: str = '{question}'
    mesh: MeshConfig = MeshConfig()
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    messages: Messages = Messages()
    sampler: SamplerConfig = SamplerConfig()
    observing: ObservingConfig = ObservingConfig()
    judge: JudgeConfig = JudgeConfig()
    reward: RewardWeights = RewardWeights(0.2, 0.7, 0.1)
    pretrain: PretrainConfig = PretrainConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def learners(self) -> dict[str, LearnerConfig]:
        """Settings of the learners of the phases that have steps or epochs, by field."""
        lengths = {
            'pretrain.learner': (self.pretrain.steps, self.pretrain.learner),
            'sft.learner': (self.sft.steps or self.sft.epochs, self.sft.learner),
            'learner': (self.grpo.steps or self.grpo.epochs, self.learner),
        }
        return {name: learner for name, (length, learner) in lengths.items() if length}

    def __post_init__(self):
        if self.task not in TASKS:
            raise ConfigError(f'config.task: must be one of {TASKS}, got {self.task!r}')
        if self.instruction.count('{question}') != 1:
            raise ConfigError("config.instruction: must hold '{question}' once")
        for section in (self.learner, self.sft.learner, self.pretrain.learner):
            try:
                re.compile(section.frozen)
            except re.error as error:
                raise ConfigError(f'learner.frozen: not a regular expression: {error}') from error
        if (self.grpo.steps or self.grpo.epochs) and self.learner.length < self.sampler.max_length:
            raise ConfigError(
                f'config.learner.length: {self.learner.length} is shorter than '
                f'config.sampler.max_length = {self.sampler.max_length}: trajectories would not fit'
            )
