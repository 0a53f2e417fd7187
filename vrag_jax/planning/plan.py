"""Plans a run without allocating its weights: shapes, shardings, bytes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner import steps
from vrag_jax.learner.batch import Batch, FeatureRows, micro_batches
from vrag_jax.learner.learner import LearnerConfig
from vrag_jax.learner.optimizer import make_optimizer
from vrag_jax.learner.train_state import (
    TrainState,
    create_train_state,
    train_state_shardings,
)
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.decoder import KVCache, init_cache
from vrag_jax.models.common.parameters import Params
from vrag_jax.models.families import family_of, image_spec, is_vision
from vrag_jax.models.policy import Features, PolicyModel
from vrag_jax.parallel.mesh import make_mesh, mesh_platform
from vrag_jax.parallel.sharding import (
    Rules,
    batch_sharding,
    spec,
    with_rules,
)
from vrag_jax.run.policy_setup import Shapes, abstract_policy, policy_config, sampler_copy
from vrag_jax.run.run_config import RunConfig
from vrag_jax.sampling.slots import KVPool, SamplerConfig, abstract_pool, batch_shards
from vrag_jax.training.phase import Phase

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PlannedPhase:
    """What a training phase will hold; every leaf has a shape, a dtype and a sharding.

    Attributes:
      phase: of what.
      state: parameters, optimiser state, step.
      gradients: the accumulator, like the trainable parameters.
      batch: a micro-batch.
      scores: of one layer of the decoder, `[R, H, T, T]`, where attention is plain: the
        largest array that a step makes on its way.
      metrics: names of what a step reports.
      functions: of a step, jitted.
    """

    phase: Phase
    state: TrainState
    gradients: Params
    batch: Batch
    scores: jax.ShapeDtypeStruct
    metrics: tuple[str, ...]
    functions: steps.Steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run without a byte of its weights.

    Attributes:
      task: what was asked for.
      model_config: sizes of the policy.
      graphdef: structure of the policy.
      mesh: the devices.
      params: the policy's parameters by path; a phase starts from them, and they
        stay while it runs: as the reference of the KL term, and to start another.
      phases: training phases by name.
      sampler_params: what the sampler holds of the policy as it lies for sampling, where
        that is not the learner's own; none where nothing is sampled.
      pool: blocks of the sampler's cache, or None where nothing is sampled.
      working: what a call to decode copies out of them, at its largest.
      features: the buffer of image features, `[rows, ...]`.
    """

    task: str
    model_config: ModelConfig
    graphdef: nnx.GraphDef[PolicyModel]
    mesh: Mesh
    params: Params
    phases: Mapping[str, PlannedPhase]
    sampler_params: Shapes
    pool: KVPool | None
    working: KVCache | None
    features: Features

    @property
    def parameter_count(self) -> int:
        """Numbers in the policy."""
        return sum(math.prod(leaf.shape) for leaf in self.params.values())

    def parts(self) -> dict[str, Any]:
        """Returns the trees of arrays that the run will hold, by what they are."""
        out: dict[str, Any] = {'parameters, as they were at first': self.params}
        for name, phase in self.phases.items():
            # What is frozen is shared with those that were at first.
            out[f'{name}: trained parameters'] = phase.state.trainable
            out[f'{name}: optimiser'] = phase.state.opt_state
            out[f'{name}: gradients'] = phase.gradients
            out[f'{name}: micro-batch'] = phase.batch
            out[f'{name}: scores, if not fused'] = phase.scores
        if self.pool is not None:
            out['sampler: copy of the policy'] = self.sampler_params
            out['sampler: blocks of the cache'] = self.pool
            out['sampler: copy of a call'] = self.working
        return out | {'image features': self.features}

    def __str__(self) -> str:
        """A table of what the devices hold, and of one activation, the largest."""
        shape = ', '.join(f'{axis} {size}' for axis, size in self.mesh.shape.items())
        lines = [f'{self.parameter_count / 1e9:.3f}B parameters on {self.mesh.size} devices '
                 f'({shape})', f'{"":34}{"all devices":>14}{"a device":>14}']
        for name, tree in self.parts().items():
            lines.append(f'{name:34}{total_bytes(tree) / GIB:10.3f} GiB'
                         f'{device_bytes(tree) / GIB:10.3f} GiB')
        return '\n'.join(lines)


def plan(
    config: RunConfig, phases: Sequence[Phase], tokenizer: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> Plan:
    """Builds a run up to the allocation of its weights.

    The sampler is planned where a phase rolls out, and where none trains: then the policy is
    evaluated.

    Args:
      config: a checked config.
      phases: those of the run, see `tasks.registry.phases`.
      tokenizer: of the tiny policy, see `policy_config`.
      devices: on which it will run; all of this machine's by default.

    Returns:
      Shapes, dtypes and shardings, as the tasks will make them.

    Raises:
      ValueError: where parts do not fit together; names them.
    """
    mesh = make_mesh(config.mesh.sizes(), devices)
    model_config = policy_config(config, tokenizer)
    rules = with_rules(config.mesh.learner_rules)
    sampler_rules = with_rules(config.mesh.sampler_rules)
    graphdef, shapes = abstract_policy(config, model_config, mesh_platform(mesh))
    params = _placed(shapes, parameter_shardings(
        shapes, mesh, rules, family_of(model_config).axes))
    features = image_spec(model_config).features(
        config.vision_features.rows, jnp.dtype(config.policy.dtype))
    features = _placed(features, jax.tree.map(
        lambda _: NamedSharding(mesh, PartitionSpec()), features))
    planned = {phase.name: _phase(phase, graphdef, params, features, model_config, mesh, rules)
               for phase in phases}
    copied: Shapes = {}
    pool, working = None, None
    if not phases or any(phase.rollout for phase in phases):
        pool = abstract_pool(model_config, config.sampler, mesh, sampler_rules)
        working = _working_cache(model_config, config.sampler, mesh, sampler_rules)
        # With an overlap it samples beside the learner, with weights that are no longer its own.
        changing = planned[phases[-1].name].state.trainable if phases and phases[-1].overlap else {}
        copied = sampler_copy(params, changing, config, mesh, family_of(model_config).axes)
    return Plan(config.task, model_config, graphdef, mesh, params, planned, copied, pool, working,
                features)


def total_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, each counted once."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
               for x in jax.tree.leaves(tree))


def _phase(
    phase: Phase, graphdef: nnx.GraphDef[PolicyModel], params: Params, features: Features,
    model_config: ModelConfig, mesh: Mesh, rules: Rules,
) -> PlannedPhase:
    """Plans a phase as `Learner` builds it, and traces a step."""
    config = phase.learner
    optimizer = make_optimizer(config, total_steps=1)
    shapes = jax.eval_shape(
        lambda p: create_train_state(p, optimizer, config.frozen), dict(params))
    shardings = train_state_shardings(
        params, optimizer, config.frozen, mesh, rules, family_of(model_config).axes)
    state = _placed(shapes, shardings)
    vision_is_frozen = not is_vision(model_config, state.trainable)
    batch = _batch(config, model_config, vision_is_frozen)
    batch = _placed(batch, batch_sharding(mesh, batch, rules))
    functions = steps.make_steps(
        graphdef, optimizer, phase.loss,
        steps.StepConfig(phase.temperature, config.vocab_chunk), shardings, rules)
    total = jax.ShapeDtypeStruct((), jnp.float32)
    gradients, metrics = jax.eval_shape(
        functions.gradients, state, state.trainable, batch,
        features if vision_is_frozen else None, total, total)
    gradients = _placed(gradients, shardings.trainable)
    scores = _scores(config, model_config, mesh, rules)
    return PlannedPhase(
        phase, state, gradients, batch, scores, tuple(sorted(metrics)), functions)


def _batch(config: LearnerConfig, model_config: ModelConfig, vision_is_frozen: bool) -> Batch:
    """A micro-batch as the packer makes it, of one short sequence."""
    sequence = TokenSequence(
        tokens=np.zeros(2, np.int32), position_ids=np.zeros((3, 2), np.int32),
        loss_mask=np.ones(2, bool), image_index=np.full(2, -1, np.int32), images=())
    rows: FeatureRows | None = (lambda _: {}) if vision_is_frozen else None
    layout = dataclasses.replace(
        config.layout, row_buckets=(), window_buckets=(), length_buckets=())
    return next(micro_batches([sequence], layout, model_config, rows)).batch


def _scores(
    config: LearnerConfig, model_config: ModelConfig, mesh: Mesh, rules: Rules
) -> jax.ShapeDtypeStruct:
    """Scores of a layer of plain attention, where no kernel does without them."""
    shape = (config.rows, model_config.text.num_attention_heads, config.length, config.length)
    split = spec(('batch', 'heads', 'length'), shape, mesh, rules)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, split))


def _working_cache(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh, rules: Rules
) -> KVCache:
    """The cache that a call to decode reads, for sequences of the largest length."""
    shards = batch_shards(mesh, rules)
    rows = -(-config.slots // shards) * shards
    shapes = jax.eval_shape(lambda: init_cache(
        model_config, rows, config.most_tokens, jnp.dtype(config.cache_dtype)))
    return _placed(shapes, jax.tree.map(lambda x: NamedSharding(
        mesh, spec((None, 'batch', 'heads'), x.shape, mesh, rules)), shapes))


def _placed(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a tree with shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree, shardings)
