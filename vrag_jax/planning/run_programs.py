"""Every jitted program of a run, with the shapes and shardings of its arguments."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vrag_jax.models.families import family_of, image_spec
from vrag_jax.parallel.sharding import Rules, with_rules
from vrag_jax.planning.plan import Plan, PlannedPhase
from vrag_jax.run.policy_setup import Shapes, sampling_shapes
from vrag_jax.run.run_config import RunConfig
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.image_features import make_encoder
from vrag_jax.sampling.inputs import decode_inputs, prefill_inputs
from vrag_jax.sampling.programs import StopRules, make_programs

STOP_STATES = 256  # More than the automaton of the actions' tags has.
END_IDS = 2


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
      name: phase or room, and what it does.
      function: jitted.
      arguments: shapes with shardings; static ones as they are.
      inputs: those of them that come with each call and are not held.
      phase: of training, '' for a rollout.
      loop: how often a loop goes round whose length only the data tell; 0 is none.
      rows, tokens: rows of a micro-batch, and positions in all of them.
      calls: in an iteration all of whose trajectories are as long as they can be.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    inputs: Any = ()
    phase: str = ''
    loop: int = 0
    rows: int = 0
    tokens: int = 0
    calls: float = 0.0

    @property
    def learns(self) -> bool:
        """Whether it works out gradients."""
        return self.name.endswith('gradients')

    @property
    def samples(self) -> bool:
        """Whether it is part of a rollout."""
        return not self.phase

    def lower(self) -> Any:
        """Traces and lowers it for the devices of its arguments."""
        return self.function.lower(*self.arguments)


def programs(config: RunConfig, plan: Plan) -> Iterator[Program]:
    """Yields the largest of every kind of program that the run's steps call.

    Args:
      config: of the run.
      plan: of the config.
    """
    mesh = plan.mesh
    sampler_rules = with_rules(config.mesh.sampler_rules)
    sampling = sampling_shapes(
        plan.params, config, mesh, sampler_rules, family_of(plan.model_config).axes)
    features = config.vision_features
    windows = max(features.windows)
    spec = image_spec(plan.model_config)
    images = _replicated(spec.pack([], windows, min(features.span, windows)), mesh)
    rows = _replicated(np.zeros(windows * spec.window_tokens, np.int32), mesh)
    if plan.pool is not None or not all(p.batch.images is not None for p in plan.phases.values()):
        yield Program('encode images', make_encoder(plan.graphdef, mesh, sampler_rules),
                      (sampling, images, plan.features, rows), inputs=(images, rows),
                      calls=_image_tokens(config, plan, spec.factor) / len(rows))
    if plan.pool is not None:
        yield from _sampler_programs(config, plan, sampling, sampler_rules)
    for phase in plan.phases.values():
        yield from _learner_programs(config, phase, plan)


def _sampler_programs(
    config: RunConfig, plan: Plan, params: Shapes, rules: Rules
) -> Iterator[Program]:
    sizes, mesh = config.sampler, plan.mesh
    assert plan.pool is not None
    functions = make_programs(
        plan.graphdef, plan.model_config, sizes, mesh,
        jax.tree.map(lambda x: x.sharding, plan.pool), rules)
    shards = plan.pool.k.shape[0]
    blocks = sizes.all_attend_blocks()[-1]
    past_end = plan.pool.k.shape[1] * sizes.block_size
    rows, width = max(sizes.prefill_shapes, key=lambda shape: shape[0] * shape[1])
    new = _replicated(prefill_inputs(shards, rows, width, blocks, past_end), mesh)
    played, how = _rollout(config, plan)
    replies = min(sizes.max_new_tokens, sizes.max_length)
    yield Program('prefill', functions.prefill, (params, plan.pool, new, plan.features),
                  inputs=new, calls=played * (sizes.max_length - replies) / new.tokens.size)
    slots = _replicated(decode_inputs(sizes, shards, sizes.slots, blocks, past_end), mesh)
    vocabulary = plan.model_config.text.vocab_size
    rules_of_turns = StopRules(
        np.zeros((STOP_STATES, vocabulary), np.uint8), np.zeros(STOP_STATES, bool),
        np.zeros(END_IDS, np.int32), 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    yield Program(
        'decode', functions.decode,
        (params, plan.pool, slots, _replicated(key, mesh), _replicated(rules_of_turns, mesh),
         how),
        inputs=(slots, _replicated(rules_of_turns, mesh)), loop=sizes.decode_steps,
        calls=played * replies / (len(slots.lengths) * sizes.decode_steps))


def _learner_programs(config: RunConfig, planned: PlannedPhase, plan: Plan) -> Iterator[Program]:
    phase, mesh, state, functions = planned.phase, plan.mesh, planned.state, planned.functions
    name = phase.name
    features = None if planned.batch.images is not None else plan.features
    number = _replicated(jax.ShapeDtypeStruct((), jnp.float32), mesh)
    key = None
    if config.policy.lora.dropout and phase.dropout:
        key = _replicated(np.zeros(2, np.uint32), mesh)
    tokens, rows = planned.batch.tokens.size, len(planned.batch.tokens)
    calls = phase.sequences / rows  # Rows are as long as the longest trajectory.
    if phase.scored:
        yield Program(f'{name}: log-probs', functions.logprobs,
                      (state.params, planned.batch, features), inputs=planned.batch, phase=name,
                      calls=len(phase.scored) * calls)
    yield Program(
        f'{name}: gradients', functions.gradients,
        (state, planned.gradients, planned.batch, features, number, number, key),
        inputs=planned.batch, phase=name, rows=rows, tokens=tokens, calls=calls)
    yield Program(
        f'{name}: optimiser', functions.step,
        ((state.trainable, state.opt_state, state.step), planned.gradients), phase=name,
        calls=phase.updates)


def _rollout(config: RunConfig, plan: Plan) -> tuple[int, SamplingConfig]:
    """Returns how many trajectories a rollout has at most, and how their tokens are drawn."""
    phases = [planned.phase for planned in plan.phases.values()]
    largest = max((p for p in phases if p.rollout), key=lambda p: p.trajectories, default=None)
    if largest is None or largest.rollout is None:  # An evaluation, of so many at a time.
        return config.sampler.slots, config.evaluation.sampling
    return largest.trajectories, largest.rollout


def _image_tokens(config: RunConfig, plan: Plan, factor: int) -> int:
    """Returns the tokens of an iteration's images, all of them different and of full size."""
    environment = config.environment
    shown = _rollout(config, plan)[0] * (environment.max_turns - 1)
    return shown * environment.max_pixels // factor**2


def _replicated(tree: Any, mesh: Mesh) -> Any:
    """Shapes of a tree, whole on every device, as arrays of the host come."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)

