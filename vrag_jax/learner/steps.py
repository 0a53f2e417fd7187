"""The jitted functions of training: log-probs, gradients, optimiser update."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vrag_jax.learner import losses
from vrag_jax.learner.batch import Batch
from vrag_jax.learner.train_state import TrainState
from vrag_jax.models.parameters import Params, merge
from vrag_jax.models.qwen2_5_vl import Qwen2_5_VL

Metrics = dict[str, jax.Array]
LossFn = Callable[[jax.Array, jax.Array, Batch, jax.Array], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Static choices of the forward pass.

    Attributes:
      temperature: divides the logits, as in sampling.
      vocab_chunk: tokens for which logits exist at a time; 0 is all at once.
    """

    temperature: float = 1.0
    vocab_chunk: int = 0


@dataclasses.dataclass(frozen=True)
class Steps:
    """Jitted functions over pytrees; each compiles once a batch shape.

    Attributes:
      logprobs: `(params, batch, features) -> [R, T]` float32.
      gradients: `(state, accumulated, batch, features, total) ->
        (accumulated, metrics)`; `accumulated` is donated.
      apply: `(state, accumulated) -> (state, accumulated zeros, gradient norm)`;
        both arguments are donated.
    """

    logprobs: Callable
    gradients: Callable
    apply: Callable


def supervised(logprobs, entropies, batch: Batch, total) -> tuple[jax.Array, Metrics]:
    """Loss of pretraining and SFT."""
    del entropies
    return losses.sft_loss(logprobs, batch.weights, total)


def grpo(config: losses.GrpoLossConfig) -> LossFn:
    """Loss of GRPO with the given coefficients."""

    def loss(logprobs, entropies, batch: Batch, total):
        return losses.grpo_loss(
            logprobs,
            batch.old_logprobs,
            batch.ref_logprobs,
            batch.advantages,
            batch.weights,
            total,
            config,
            entropies,
        )

    return loss


def make_steps(
    graphdef: nnx.GraphDef[Qwen2_5_VL],
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    config: StepConfig,
    shardings: TrainState,
) -> Steps:
    """Builds the functions of a training phase.

    Args:
      graphdef: structure of the policy.
      optimizer: takes the accumulated gradients.
      loss_fn: loss of a micro-batch.
      config: static choices.
      shardings: of the state. State and batch are placed on the mesh by the
        caller, what comes out lies as it went in, and GSPMD does the rest.
    """
    mesh = jax.tree.leaves(shardings.trainable)[0].mesh.abstract_mesh

    def forward(params: Params, batch: Batch, features: jax.Array | None):
        model = merge(graphdef, params)
        # The mesh that the model's own constraints are about, see `constrain`.
        with jax.sharding.use_abstract_mesh(mesh):
            if batch.images is not None:
                features = model.encode_images(batch.images)
            hidden = model.hidden_states(
                batch.tokens,
                batch.position_ids,
                segment_ids=batch.segment_ids,
                image_features=features,
                image_index=batch.image_index,
            )
        return losses.target_logprobs(
            model, hidden, batch.targets, temperature=config.temperature, chunk=config.vocab_chunk
        )

    @jax.jit
    def logprobs(params, batch, features):
        return forward(params, batch, features)[0]

    def gradients(state: TrainState, accumulated, batch, features, total):
        def loss_of(trainable):
            logp, entropies = forward({**trainable, **state.frozen}, batch, features)
            return loss_fn(logp, entropies, batch, total)

        grads, metrics = jax.grad(loss_of, has_aux=True)(state.trainable)
        return jax.tree.map(jnp.add, accumulated, grads), metrics

    def apply(state: TrainState, accumulated):
        updates, opt_state = optimizer.update(accumulated, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        new_state = TrainState(trainable, state.frozen, opt_state, state.step + 1)
        norm = optax.global_norm(accumulated)
        return new_state, jax.tree.map(jnp.zeros_like, accumulated), norm

    return Steps(
        logprobs=logprobs,
        # Left to the compiler, shardings could change from call to call, and each
        # change would compile again.
        gradients=jax.jit(
            gradients, donate_argnums=1, out_shardings=(shardings.trainable, None)
        ),
        apply=jax.jit(
            apply, donate_argnums=(0, 1), out_shardings=(shardings, shardings.trainable, None)
        ),
    )
