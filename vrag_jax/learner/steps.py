"""The jitted functions of training: log-probs, gradients, optimiser update."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from vrag_jax.learner import losses
from vrag_jax.learner.batch import Batch
from vrag_jax.learner.logprobs import target_logprobs
from vrag_jax.learner.train_state import TrainState
from vrag_jax.learner.variants import AVERAGING
from vrag_jax.models.common.parameters import Params, merge
from vrag_jax.models.policy import Features, PolicyModel
from vrag_jax.parallel.sharding import RULES, Rules, sharded_over

Metrics = dict[str, jax.Array]
# `(logprobs, entropies, batch, total, tokens) -> (loss, metrics)` of a micro-batch;
# `total` and `tokens` are those of the whole mini-batch.
LossFn = Callable[
    [jax.Array, jax.Array, Batch, jax.Array, jax.Array], tuple[jax.Array, Metrics]]
# `(trained tokens of each sequence) -> (weight of each sequence, total)`.
Averaging = Callable[[np.ndarray], tuple[np.ndarray, float]]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a phase minimises.

    Attributes:
      of: loss of a micro-batch.
      averaging: weights of a mini-batch's sequences.
      entropy_gradient: whether entropies are part of it, and not only a metric.
    """

    of: LossFn
    averaging: Averaging
    entropy_gradient: bool = False


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Static choices of the forward pass.

    Attributes:
      temperature: divides the logits, as in sampling.
      vocab_chunk: ids for which logits exist at a time; 0 is all at once.
    """

    temperature: float = 1.0
    vocab_chunk: int = 0


@dataclasses.dataclass(frozen=True)
class Steps:
    """Jitted functions over pytrees; each compiles once a batch shape.

    Attributes:
      logprobs: `(params, batch, features) -> [R, T]` float32.
      gradients: `(state, accumulated, batch, features, total, tokens, dropout_key) ->
        (accumulated, metrics)`; `accumulated` is donated, the key,
        `[2]` uint32, may be None.
      step: `((trainable, opt_state, step), accumulated) -> (the same after an update,
        accumulated zeros, gradient norm)`; both arguments are donated.
      apply: `(state, accumulated) -> (state, accumulated zeros, gradient norm)`;
        `step` on a whole state, of which the frozen parameters are left alone.
    """

    logprobs: Callable
    gradients: Callable
    step: Callable
    apply: Callable


def _supervised(logprobs, entropies, batch: Batch, total, tokens) -> tuple[jax.Array, Metrics]:
    del entropies, tokens
    return losses.sft_loss(logprobs, batch.weights, total)


# Loss of pretraining and SFT.
supervised = Loss(_supervised, functools.partial(AVERAGING['token'], constant=0))


def grpo(config: losses.GrpoLossConfig, old_is_current: bool = False) -> Loss:
    """Loss of GRPO.

    Args:
      config: coefficients and variants.
      old_is_current: see `losses.grpo_loss`.
    """
    def loss(logprobs, entropies, batch: Batch, total, tokens):
        return losses.grpo_loss(
            logprobs, batch.old_logprobs, batch.ref_logprobs, batch.advantages, batch.weights,
            total, config, entropies, segment_ids=batch.segment_ids,
            sampler_logprobs=batch.sampler_logprobs, tokens=tokens,
            old_is_current=old_is_current)

    averaging = functools.partial(AVERAGING[config.averaging], constant=config.constant_length)
    return Loss(loss, averaging, entropy_gradient=config.entropy_coef > 0)


def make_steps(
    graphdef: nnx.GraphDef[PolicyModel],
    optimizer: optax.GradientTransformation,
    loss: Loss,
    config: StepConfig,
    shardings: TrainState,
    rules: Rules = RULES,
) -> Steps:
    """Builds the functions of a training phase.

    Args:
      graphdef: structure of the policy.
      optimizer: takes the accumulated gradients.
      loss: what is minimised.
      config: static choices.
      shardings: of the state. State and batch are placed on the mesh by the
        caller, what comes out lies as it went in, and GSPMD does the rest.
      rules: mesh axes of each logical axis.
    """
    mesh = jax.tree.leaves(shardings.trainable)[0].mesh

    def forward(params: Params, batch: Batch, features: Features | None, dropout_key=None):
        model = merge(graphdef, params)
        with sharded_over(mesh, rules):
            if batch.images is not None:
                features = model.encode_images(batch.images)
            hidden = model.hidden_states(
                batch.tokens,
                batch.position_ids,
                segment_ids=batch.segment_ids,
                image_features=features,
                image_index=batch.image_index,
                dropout_key=dropout_key,
            )
            return target_logprobs(
                model, hidden, batch.targets, temperature=config.temperature,
                chunk=config.vocab_chunk, entropy_gradient=loss.entropy_gradient)

    # Whole on every device: each process reads all of them.
    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def logprobs(params, batch, features):
        return forward(params, batch, features)[0]

    def gradients(
        state: TrainState, accumulated, batch, features, total, tokens, dropout_key=None
    ):
        if dropout_key is not None:
            dropout_key = jax.random.wrap_key_data(dropout_key, impl='threefry2x32')

        def loss_of(trainable):
            logp, entropies = forward(
                {**trainable, **state.frozen}, batch, features, dropout_key)
            return loss.of(logp, entropies, batch, total, tokens)

        grads, metrics = jax.grad(loss_of, has_aux=True)(state.trainable)
        return jax.tree.map(jnp.add, accumulated, grads), metrics

    def step_of(changing, accumulated):
        trainable, opt_state, step = changing
        updates, opt_state = optimizer.update(accumulated, opt_state, trainable)
        norm = optax.global_norm(accumulated)
        changed = (optax.apply_updates(trainable, updates), opt_state, step + 1)
        return changed, jax.tree.map(jnp.zeros_like, accumulated), norm

    jitted_step = jax.jit(
        step_of, donate_argnums=(0, 1),
        out_shardings=((shardings.trainable, shardings.opt_state, shardings.step),
                       shardings.trainable, None))

    def apply(state: TrainState, accumulated):
        # What is frozen is not given to the program: donated, it would be lost to those
        # who share it (the reference policy), and returned, it would be a copy.
        (trainable, opt_state, step), zeros, norm = jitted_step(
            (state.trainable, state.opt_state, state.step), accumulated)
        return TrainState(trainable, state.frozen, opt_state, step), zeros, norm

    return Steps(
        logprobs=logprobs,
        # Left to the compiler, shardings could change from call to call, and each
        # change would compile again.
        gradients=jax.jit(
            gradients, donate_argnums=1, out_shardings=(shardings.trainable, None)
        ),
        step=jitted_step,
        apply=apply,
    )
