"""The typed form of a config: every section a frozen dataclass of its room."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from vrag_jax.actions.observation import Messages
from vrag_jax.actions.registry import DEFAULT_ACTIONS, get_actions
from vrag_jax.config import naming
from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.data.prompt import PromptConfig
from vrag_jax.evaluation.evaluate import EvaluationConfig
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.models.common.attention import BACKENDS
from vrag_jax.models.common.layers import REMAT
from vrag_jax.models.common.lora import LoraConfig
from vrag_jax.models.common.quantization import require
from vrag_jax.models.families import presets
from vrag_jax.parallel.distributed import DistributedConfig
from vrag_jax.parallel.mesh import MeshConfig
from vrag_jax.rewards.model_judge import JudgeConfig
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.environment import EnvironmentConfig
from vrag_jax.rollout.world import ObservingConfig
from vrag_jax.sampling.image_features import VisionFeaturesConfig
from vrag_jax.sampling.slots import SamplerConfig
from vrag_jax.serving.service_config import ServiceConfig
from vrag_jax.training.phase_configs import GrpoConfig, PretrainConfig, SftConfig

T = TypeVar('T')
DTYPES = ('float32', 'bfloat16', 'float16')


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Which policy, and how it computes.

    Attributes:
      preset: sizes by name, e.g. 'tiny' or 'qwen2_5_vl_7b'.
      checkpoint: HF checkpoint directory with weights and tokenizer; '' starts
        from random weights and a tokenizer trained on PageWorld.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      remat: what is computed again in the backward pass, see `layers.Numerics`.
      attention: 'auto' is the platform's own: 'splash' on TPUs, 'cudnn' on NVIDIA's GPUs
        in half precision, 'plain' elsewhere.
      quantization: of the decoder's frozen kernels: 'int8', 'int4', or '' for none.
      lora: adapters, which alone are trained.
      adapter: directory of adapters to start from; '' starts from new ones.
      tokenizer_vocab: size of the tokenizer that is trained where there is no
        checkpoint.
      export_dtype: dtype of the weights in `workdir/policy`; '' is bfloat16 where the policy
        came from a checkpoint, else `param_dtype`.
    """

    preset: str = 'tiny'
    checkpoint: str = ''
    dtype: str = 'float32'
    param_dtype: str = 'float32'
    remat: str = 'none'
    attention: str = 'auto'
    quantization: str = ''
    lora: LoraConfig = LoraConfig()
    adapter: str = ''
    tokenizer_vocab: int = 400
    export_dtype: str = ''

    @property
    def exported_dtype(self) -> str:
        """Of the weights that a run leaves behind."""
        return self.export_dtype or ('bfloat16' if self.checkpoint else self.param_dtype)

    def __post_init__(self):
        choices = {'preset': presets(), 'dtype': DTYPES, 'param_dtype': DTYPES, 'remat': REMAT,
                   'attention': BACKENDS, 'export_dtype': ('', 'float32', 'bfloat16')}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'{name} must be one of {tuple(allowed)}, got {getattr(self, name)!r}')
        require(self.quantization)
        if self.quantization and not self.lora.rank:
            raise ValueError('quantization is for what is not trained: set lora.rank')
        if self.adapter and not self.lora.rank:
            raise ValueError('adapter needs lora.rank')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pages and questions come from.

    Several question files are given as one text, separated by commas.
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
      image_root: folder that the image files of these conversations are relative to; '' takes
        that of their file or the next one above it in which the first image is found.
    """

    source: str = 'pageworld'
    pageworld: PageWorldConfig = PageWorldConfig()
    manifest: str = ''
    train_questions: str = ''
    eval_questions: str = ''
    trajectories: str = ''
    image_root: str = ''

    def __post_init__(self):
        if self.source not in ('pageworld', 'files'):
            raise ValueError(f"source must be 'pageworld' or 'files', got {self.source!r}")
        if self.manifest and self.source != 'files':
            raise ValueError('manifest is for pages of files; pass --config.data.source=files')
        if self.image_root and not self.trajectories:
            raise ValueError('image_root is for the images of trajectories: give these, too')


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """Compiling a run's programs for accelerators that are not there.

    Attributes:
      topology: chips, e.g. 'v5p:2x2x1'.
      memory_gib: memory of a chip; 0 is what its kind has.
      programs: regular expressions; only programs whose name matches one are compiled, all
        where there are none.
    """

    topology: str = ''
    memory_gib: float = 0.0
    programs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole config; see the sections.

    Attributes:
      task: which task runs.
      seed: seed of everything random.
      actions: what the policy may do in a turn, by tag; a config may add its own, see
        `actions.registry`.
      evidence_sft: whether GRPO on files is preceded by SFT on an expert that knows
        the questions' evidence boxes (it searches, zooms into them, answers).
    """

    task: str
    seed: int = 0
    actions: tuple[str, ...] = DEFAULT_ACTIONS
    evidence_sft: bool = False
    distributed: DistributedConfig = DistributedConfig()
    mesh: MeshConfig = MeshConfig()
    policy: PolicyConfig = PolicyConfig()
    prompt: PromptConfig = PromptConfig()
    data: DataConfig = DataConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    messages: Messages = Messages()
    vision_features: VisionFeaturesConfig = VisionFeaturesConfig()
    sampler: SamplerConfig = SamplerConfig()
    observing: ObservingConfig = ObservingConfig()
    judge: JudgeConfig = JudgeConfig()
    reward: RewardConfig = RewardConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compile: CompileConfig = CompileConfig()
    serving: ServiceConfig = ServiceConfig()

    def __post_init__(self):
        with naming('config.actions'):
            get_actions(self.actions)

    def section(self, cls: type[T]) -> T:
        """Returns the section of a task that is not one of this class's own fields.

        Args:
          cls: its dataclass; a config that was made without the section has its defaults.
        """
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return next((value for value in values if isinstance(value, cls)), cls())


def with_sections(sections: Mapping[str, type]) -> type[RunConfig]:
    """Returns the class of a config that has further sections, of tasks that bring them.

    Args:
      sections: their dataclasses, all of whose fields have defaults, by name.
    """
    fields = [(name, cls, dataclasses.field(default=cls())) for name, cls in sections.items()]
    return dataclasses.make_dataclass('RunConfig', fields, bases=(RunConfig,), frozen=True)
