"""The context of a run: devices, corpus, policy, sampler, built from the config on demand."""

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.actions.action import ActionType
from vrag_jax.actions.registry import get_actions
from vrag_jax.actions.stopping import build_stop_table
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.prompt import Prompt
from vrag_jax.data.tiny_tokenizer import train_tiny_tokenizer
from vrag_jax.evaluation.evaluate import Evaluation
from vrag_jax.experts.demonstrations import Demonstrations
from vrag_jax.indexing.build import announce
from vrag_jax.metrics import MetricsWriter
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ImagePreprocessor
from vrag_jax.models.common.parameters import Params
from vrag_jax.models.common.tokenizer import ids_without_text, load_tokenizer, token_bytes
from vrag_jax.models.families import family_of, image_spec
from vrag_jax.models.policy import PolicyFamily, PolicyModel
from vrag_jax.parallel.distributed import is_main
from vrag_jax.parallel.mesh import make_mesh, mesh_platform
from vrag_jax.parallel.processes import local_mesh, main_first
from vrag_jax.parallel.sharding import Rules, with_rules
from vrag_jax.rewards.judge import AnswerJudge
from vrag_jax.rewards.model_judge import open_judge
from vrag_jax.rollout.environment import Environment
from vrag_jax.rollout.world import World
from vrag_jax.run.corpus import Corpus, build_corpus, position_phrases, tokenizer_texts
from vrag_jax.run.policy_setup import (
    abstract_policy,
    base_policy,
    initial_params,
    policy_config,
    sampling_placement,
)
from vrag_jax.run.prompt_choice import choose_prompt
from vrag_jax.run.run_config import RunConfig
from vrag_jax.sampling.image_features import ImageFeatureCache, make_encoder
from vrag_jax.sampling.sampler import Sampler
from vrag_jax.training.phase import Phase


class RunContext:
    """Everything a task works with; what is expensive is made when first asked for.

    Args:
      config: the run's config.
      workdir: where the run keeps its files.
      phases: those of the config that have an iteration, to be planned or compiled.

    Attributes:
      started: `time.monotonic()` when the context was made.
    """

    def __init__(self, config: RunConfig, workdir: Path, phases: Sequence[Phase] = ()):
        self.config = config
        self.workdir = workdir
        self.phases = phases
        self.started = time.monotonic()
        self.learner_rules = with_rules(config.mesh.learner_rules)
        self.sampler_rules = with_rules(config.mesh.sampler_rules)

    @property
    def seed(self) -> int:
        return self.config.seed

    @functools.cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.config.mesh.sizes())

    @functools.cached_property
    def sampling_mesh(self) -> Mesh:
        """The devices of this process, on which it samples its own episodes."""
        return local_mesh(self.mesh)

    @functools.cached_property
    def metrics(self) -> MetricsWriter:
        return MetricsWriter(self.workdir)

    @property
    def platform(self) -> str:
        """Of the devices, see `mesh.device_platform`."""
        return mesh_platform(self.mesh)

    @functools.cached_property
    def corpus(self) -> Corpus:
        announce(self.config.retrieval)
        return main_first('corpus', lambda: build_corpus(self.config, self.workdir))

    @functools.cached_property
    def tokenizer(self):
        if not self.config.policy.checkpoint:
            main_first('tokenizer', lambda: self._train_tokenizer(self.tokenizer_directory))
        return load_tokenizer(self.tokenizer_directory)

    @property
    def tokenizer_directory(self) -> Path:
        """Of the checkpoint's tokenizer, or of the run's own."""
        checkpoint = self.config.policy.checkpoint
        return Path(checkpoint) if checkpoint else self.workdir / 'tokenizer'

    def _train_tokenizer(self, directory: Path) -> None:
        policy = self.config.policy
        if not directory.is_dir():
            # Under its name only when it is whole, should the run be killed here.
            partial = directory.with_name('tokenizer.partial')
            texts = tokenizer_texts(self.corpus, self.config.environment.limits)
            train_tiny_tokenizer(texts, policy.tokenizer_vocab, partial,
                                 position_phrases(self.corpus), self.config.actions)
            partial.replace(directory)

    @functools.cached_property
    def prompt(self) -> Prompt:
        """What questions are asked with."""
        return choose_prompt(self.config)

    @functools.cached_property
    def chat(self) -> ChatFormat:
        return ChatFormat(self.tokenizer, self.prompt)

    @functools.cached_property
    def end_ids(self) -> list[int]:
        """Ids that end a turn by themselves."""
        return sorted({ChatFormat(self.tokenizer).end_of_turn_id,
                       self.tokenizer.convert_tokens_to_ids('<|endoftext|>')})

    @functools.cached_property
    def _sizes(self) -> ModelConfig:
        return policy_config(self.config, self.tokenizer)

    @property
    def family(self) -> PolicyFamily:
        """Of the policy."""
        return family_of(self._sizes)

    @functools.cached_property
    def model_config(self) -> ModelConfig:
        sizes = self.family.with_processor(self._sizes, self.image_processor)
        return dataclasses.replace(sizes, suppressed_ids=ids_without_text(
            self.tokenizer, sizes.text.vocab_size, self.end_ids))

    @functools.cached_property
    def _abstract(self):
        return abstract_policy(self.config, self.model_config, self.platform)

    @property
    def graphdef(self) -> nnx.GraphDef[PolicyModel]:
        return self._abstract[0]

    @property
    def plain_shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Of the parameters of the policy without adapters or quantisation, by path."""
        return base_policy(self.config, self.model_config, self.platform)[1]

    def initial_params(self) -> Params:
        """Returns the policy's first weights, placed on the mesh."""
        return initial_params(self.config, self.model_config, self.mesh, self.learner_rules)

    @functools.cached_property
    def for_sampling(self) -> Callable[[Params], Params]:
        """Lays a policy out for the sampler, see `policy.sampling_placement`."""
        return sampling_placement(self._abstract[1], self.config, self.mesh, self.sampling_mesh,
                                  self.sampler_rules, self.family.axes)

    @functools.cached_property
    def image_processor(self) -> Any:
        """The policy's HF image processor."""
        if self.config.policy.checkpoint:
            return self.family.load_processor(Path(self.config.policy.checkpoint))
        return self.family.new_processor(self._sizes)

    @functools.cached_property
    def preprocess(self) -> ImagePreprocessor:
        return ImagePreprocessor(
            self.image_processor, image_spec(self.model_config),
            self.config.observing.patch_cache_bytes)

    @functools.cached_property
    def actions(self) -> tuple[ActionType, ...]:
        """What the policy may do in a turn."""
        return get_actions(self.config.actions)

    def world(self, disabled: Collection[str] = ()) -> World:
        """Returns the world of the episodes.

        Args:
          disabled: tags of actions that end a turn, but cannot be carried out.
        """
        environment = Environment(
            self.corpus.store, self.corpus.engine, self.config.environment, self.config.messages,
            self.actions, disabled)
        return World(environment, self.chat, self.preprocess, self.model_config,
                     self.config.observing)

    @functools.cached_property
    def judge(self) -> AnswerJudge:
        """The run's judge; a task announces it first, so that one that cannot work shows."""
        return open_judge(self.config.judge)

    def announce_judge(self) -> None:
        """Opens the judge, and says which it is."""
        judge = self.judge
        if is_main():
            print(f'answers are judged by {judge.name}', flush=True)

    def demonstrations(self) -> Demonstrations:
        """Experts on the training questions."""
        return Demonstrations(
            self.corpus.questions['train'], self.corpus.layouts, self.config.reward, self.judge,
            self.config.sampler.max_length, self.seed)

    def evaluation(self) -> Evaluation:
        """Measures policies on the test questions."""
        return Evaluation(
            self, self.config.evaluation, self.config.reward, self.corpus.questions['test'])

    @functools.cached_property
    def sampler(self) -> Sampler:
        table = build_stop_table(
            token_bytes(self.tokenizer, self.model_config.text.vocab_size), self.actions)
        sizes = self.config.sampler.of_process(jax.process_count())
        return Sampler(self.graphdef, self.model_config, sizes, table, self.end_ids,
                       self.config.seed, self.sampling_mesh, self.sampler_rules)

    @functools.cached_property
    def features(self) -> ImageFeatureCache:
        """Image features of the sampler; call `clear` whenever the vision tower changes."""
        return self._feature_cache(self.sampling_mesh, self.sampler_rules)

    @functools.cached_property
    def learner_features(self) -> ImageFeatureCache:
        """Image features of the learner: the sampler's where both have the same devices."""
        if self.sampling_mesh is self.mesh:
            return self.features
        return self._feature_cache(self.mesh, self.learner_rules)

    def clear_features(self) -> None:
        """Forgets all image features, if there are any."""
        for name in ('features', 'learner_features'):
            if name in self.__dict__:  # Made already.
                getattr(self, name).clear()

    def _feature_cache(self, mesh: Mesh, rules: Rules) -> ImageFeatureCache:
        sizes = self.config.vision_features
        return ImageFeatureCache(
            make_encoder(self.graphdef, mesh, rules), self.model_config, sizes.rows,
            sizes.windows, sizes.span, jnp.dtype(self.config.policy.dtype), mesh=mesh)
