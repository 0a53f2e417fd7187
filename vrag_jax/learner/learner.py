"""A learner: packs sequences, accumulates gradients, takes optimiser steps."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner.batch import Batch, BatchLayout, MicroBatch, empty_batch, micro_batches
from vrag_jax.learner.optimizer import OptimizerConfig, make_optimizer
from vrag_jax.learner.steps import Loss, StepConfig, make_steps
from vrag_jax.learner.train_state import (
    TrainState,
    place_train_state,
    train_state_shardings,
)
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.lora import drops_out
from vrag_jax.models.common.parameters import Params
from vrag_jax.models.families import family_of, is_vision
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.processes import put
from vrag_jax.parallel.sharding import RULES, Rules, batch_sharding, devices_along


class Features(Protocol):
    """Where image features come from, e.g. `sampling.image_features.ImageFeatureCache`.

    Attributes:
      buffer: `[F, ...]` features.
      lock: held from `rows_of` until what reads `buffer` is dispatched.
    """

    buffer: Any
    lock: Any

    def rows_of(
        self, params: Params, images: Iterable[ProcessedImage]
    ) -> Mapping[str, np.ndarray]:
        """Returns the rows of each image in `buffer`, by key."""


@dataclasses.dataclass(frozen=True)
class LearnerConfig(OptimizerConfig):
    """Optimiser settings and the shape of the learner's work.

    Attributes:
      frozen: regular expression searched in parameter paths; what matches is
        not trained. If no part of the vision tower is, image features come from a cache.
      rows: packed rows a micro-batch.
      row_buckets: smaller numbers of rows that a micro-batch may have instead.
      length: tokens a row.
      length_buckets: other lengths that a row may have, see `BatchLayout`.
      windows: attention windows for images a micro-batch, where the vision
        tower is trained.
      span: windows that the largest image may take, likewise.
      window_buckets: windows that go with each of `row_buckets`; () is `windows`.
      vocab_chunk: ids for which logits exist at a time; 0 is all at once.
    """

    frozen: str = ''
    rows: int = 8
    length: int = 1024
    windows: int = 64
    span: int = 1
    row_buckets: tuple[int, ...] = ()
    window_buckets: tuple[int, ...] = ()
    length_buckets: tuple[int, ...] = ()
    vocab_chunk: int = 8192

    def __post_init__(self):
        super().__post_init__()
        if self.vocab_chunk < 0:
            raise ValueError(f'vocab_chunk must not be negative, got {self.vocab_chunk}')
        try:
            re.compile(self.frozen)
        except re.error as error:
            raise ValueError(f'frozen is not a regular expression: {error}') from error
        _ = self.layout  # Raises where the shape cannot work.

    @property
    def layout(self) -> BatchLayout:
        return BatchLayout(self.rows, self.length, self.windows, self.span, self.row_buckets,
                           self.window_buckets, self.length_buckets)


class Learner:
    """Owns the train state of a phase and the functions that change it.

    Args:
      graphdef: structure of the policy.
      params: initial parameters by path; copied to the mesh by the sharding rules.
      model_config: sizes of the policy.
      config: settings.
      loss: what is minimised.
      total_steps: optimiser steps of the phase, for the schedule.
      temperature: divides the logits, as in sampling.
      mesh: the devices.
      rules: mesh axes of each logical axis.
      seed: of the adapters' dropout; None drops nothing.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[PolicyModel],
        params: Params,
        model_config: ModelConfig,
        config: LearnerConfig,
        loss: Loss,
        total_steps: int,
        mesh: Mesh,
        temperature: float = 1.0,
        rules: Rules = RULES,
        seed: int | None = 0,
    ):
        self.config = config
        self._model_config = model_config
        self._mesh = mesh
        self._rules = rules
        self._layout = config.layout.over(devices_along('batch', mesh, rules))
        # Of a policy without dropout nothing is drawn.
        self._seed = seed if drops_out(graphdef, params) else None
        self._averaging = loss.averaging
        optimizer = make_optimizer(config, total_steps)
        step_config = StepConfig(temperature, config.vocab_chunk)
        shardings = train_state_shardings(
            params, optimizer, config.frozen, mesh, rules, family_of(model_config).axes)
        self._steps = make_steps(graphdef, optimizer, loss, step_config, shardings, rules)
        self.state: TrainState = place_train_state(params, optimizer, config.frozen, shardings)
        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        self._zeros = jax.jit(zeros, out_shardings=shardings.trainable)
        self._accumulated = self._zeros(self.state.trainable)

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return int(self.state.step)

    @property
    def vision_is_frozen(self) -> bool:
        """Whether no parameter of the vision tower is trained."""
        return not is_vision(self._model_config, self.state.trainable)

    def update(
        self, sequences: Sequence[TokenSequence], features: Features | None = None,
        left_out: int = 0, reference: Params | None = None,
    ) -> dict[str, float]:
        """Takes one optimiser step on a mini-batch.

        Args:
          sequences: the mini-batch; the loss says how it is averaged over them.
          features: image features, where the vision tower is frozen; None runs
            it inside the step.
          left_out: sequences of the mini-batch of which no token is trained on, and which
            are not among `sequences`; some ways of averaging count them.
          reference: parameters by path of the reference policy, whose log-probs are worked out
            in the same micro-batches; None takes those of the sequences.

        Returns:
          Metrics of the loss, 'grad_norm', 'tokens' (trained tokens) and 'padding'
          (share of the positions that hold no token).

        Raises:
          ValueError: if no token is trained on.
        """
        lengths = np.array([s.loss_mask[1:].sum() for s in sequences])
        tokens = float(lengths.sum())
        if tokens == 0:
            raise ValueError('no token of this mini-batch is trained on')
        weights, total = self._averaging(np.append(lengths, np.zeros(left_out)))
        weighted = [s if weight == 1 else dataclasses.replace(s, loss_mask=s.loss_mask * weight)
                    for s, weight in zip(sequences, weights[:len(sequences)], strict=True)]
        parts: list[dict[str, jax.Array]] = []
        positions = 0
        with contextlib.closing(self._batches(weighted, features)) as batches:
            for number, (batch, buffer, micro) in enumerate(batches):
                if reference is not None:
                    ref = self._steps.logprobs(reference, batch, buffer)
                    batch = dataclasses.replace(
                        batch, ref_logprobs=jax.device_put(ref, batch.ref_logprobs.sharding))
                key = self._dropout_key(number)
                self._accumulated, metrics = self._steps.gradients(
                    self.state, self._accumulated, batch, buffer, np.float32(total),
                    np.float32(tokens), key)
                parts.append(metrics)
                positions += micro.positions
        self.state, self._accumulated, norm = self._steps.apply(self.state, self._accumulated)
        # Summed on the host: on the device the first step of several micro-batches, however
        # late it comes, would compile the sums.
        parts, norm = jax.device_get((parts, norm))
        combined = {key: (max if key.endswith('_max') else sum)(float(part[key]) for part in parts)
                    for key in parts[0]}
        padding = 1 - sum(map(len, sequences)) / positions
        return combined | {'grad_norm': float(norm), 'tokens': tokens, 'padding': padding}

    def skip(self) -> None:
        """Counts an optimiser step that is not taken, where there is nothing to learn from."""
        step = put(np.int32(self.step + 1), self.state.step.sharding)
        self.state = dataclasses.replace(self.state, step=step)

    def warm_up(
        self, features: Features | None = None, scored: Params | None = None
    ) -> None:
        """Compiles the gradients for micro-batches of every size, by running them on nothing.

        Without it the first micro-batch of a rare size, however late it comes, would
        wait for the compiler.

        Args:
          features: as in `update`.
          scored: parameters whose log-probs will be asked for, if any.
        """
        buffer = None if features is None else features.buffer
        for layout in self._layout.sizes():
            batch = self._place(empty_batch(layout, self._model_config, features is None))
            self._accumulated, _ = self._steps.gradients(
                self.state, self._accumulated, batch, buffer, np.float32(1), np.float32(1),
                self._dropout_key(0))
            if scored is not None:
                ref = self._steps.logprobs(scored, batch, buffer)
                jax.device_put(ref, batch.ref_logprobs.sharding)
        self._accumulated = self._zeros(self.state.trainable)

    def logprobs(
        self,
        params: Params,
        sequences: Sequence[TokenSequence],
        features: Features | None = None,
    ) -> list[np.ndarray]:
        """Computes the log-prob of every token of each sequence.

        Args:
          params: parameters by path (the policy's or the reference's).
          sequences: what to score.
          features: as in `update`.

        Returns:
          A `[T_i]` float32 array a sequence; 0 on the first token and on tokens
          that are not trained on.
        """
        # Fetched once all are dispatched: the devices do not wait for the host. Closed, because
        # of an error the traceback would keep the batches, and they the lock of the features.
        with contextlib.closing(self._batches(sequences, features)) as batches:
            parts = [(micro, self._steps.logprobs(params, batch, buffer))
                     for batch, buffer, micro in batches]
        out: dict[int, np.ndarray] = {}
        for micro, values in parts:
            out |= micro.scatter(jax.device_get(values), sequences)
        return [out[i] * sequences[i].loss_mask for i in range(len(sequences))]

    def _batches(
        self, sequences: Sequence[TokenSequence], features: Features | None
    ) -> Generator[tuple[Batch, Any, MicroBatch], None, None]:
        """Yields micro-batches, on the mesh and on the host, and the feature buffer.

        Images are looked up a micro-batch at a time, so the buffer need not hold those
        of all. The cache is locked until the caller has dispatched what reads it.
        """
        layout, config = self._layout, self._model_config
        if features is None:
            for micro in micro_batches(sequences, layout, config):
                yield self._place(micro.batch), None, micro
            return
        rows_of = functools.partial(features.rows_of, self.state.params)
        built = micro_batches(sequences, layout, config, rows_of)
        for _ in sequences:  # There are at most as many micro-batches.
            with features.lock:
                ready = next(built, None)
                if ready is None:
                    return
                yield self._place(ready.batch), features.buffer, ready

    def _dropout_key(self, number: int) -> np.ndarray | None:
        """Key of a micro-batch of the present step, equal in every process."""
        if self._seed is None:
            return None
        rng = np.random.default_rng([self._seed, self.step, number])
        return rng.integers(0, 2**32, 2, np.uint32)

    def _place(self, batch: Batch) -> Batch:
        """Spreads rows, and their tokens, over the mesh."""
        return put(batch, batch_sharding(self._mesh, batch, self._rules))
