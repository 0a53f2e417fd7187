"""Log-probabilities of tokens and the SFT and GRPO losses.

All sums run over tokens with weight > 0 and are divided by a given total, so
that gradient accumulation over micro-batches gives the gradient of the whole.
"""

import dataclasses

import jax
import jax.numpy as jnp

KL_LIMIT = 10.0  # k3 is clamped to [-10, 10], as in the VRAG-RL code.
# exp() of a larger log-ratio would overflow, and 0 * inf in its gradient is NaN;
# k3 and the clipped ratio are far past their own limits there.
LOG_RATIO_LIMIT = 20.0


@dataclasses.dataclass(frozen=True)
class GrpoLossConfig:
    """Coefficients of the GRPO loss.

    Attributes:
      clip_low: lower bound of the probability ratio is `1 - clip_low`.
      clip_high: upper bound of the probability ratio is `1 + clip_high`.
      kl_coef: weight of the KL term against the reference policy.
      entropy_coef: weight of the entropy bonus.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.01
    entropy_coef: float = 0.0

    def __post_init__(self):
        if not 0 < self.clip_low < 1:
            raise ValueError(f'clip_low must be in (0, 1), got {self.clip_low}')
        if self.clip_high <= 0:
            raise ValueError(f'clip_high must be positive, got {self.clip_high}')
        if self.kl_coef < 0 or self.entropy_coef < 0:
            raise ValueError('kl_coef and entropy_coef must not be negative')


def target_logprobs(
    model,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of target tokens, and entropies.

    Args:
      model: anything with `logits(hidden [..., D]) -> [..., V]`.
      hidden: `[R, T, D]` final hidden states.
      targets: `[R, T]` int32, the token that follows each position.
      temperature: the logits are divided by it, as in sampling.
      chunk: if positive, logits exist only for so many tokens at a time, and are
        computed again in the backward pass.

    Returns:
      `(logprobs, entropies)`, each `[R, T]` float32.
    """

    def of(hidden_and_targets):
        states, tokens = hidden_and_targets
        log_p = jax.nn.log_softmax(model.logits(states).astype(jnp.float32) / temperature)
        chosen = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    if chunk <= 0:
        return of((hidden, targets))
    # A chunk takes a few columns of every row: rows are spread over devices, and
    # each device then works on its own part of every chunk.
    rows, length = targets.shape
    columns = max(1, chunk // rows)

    def split(x):
        padded = jnp.pad(x, ((0, 0), (0, -length % columns)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, columns, *x.shape[2:]), 1, 0)

    chunks = jax.lax.map(jax.checkpoint(of), (split(hidden), split(targets)))
    logp, entropy = (jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :length] for x in chunks)
    return logp, entropy


def sft_loss(
    logprobs: jax.Array, weights: jax.Array, total: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood of the trained tokens, averaged over `total`.

    Args:
      logprobs: `[R, T]` float32.
      weights: `[R, T]` float32, 0 where the token is not trained on.
      total: scalar, the sum of the weights of the whole mini-batch.

    Returns:
      The scalar loss and the metrics, sums that are already divided by `total`.
    """
    loss = -jnp.sum(_trained(logprobs, weights) * weights) / total
    return loss, {'loss': loss}


def k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """The k3 estimate of KL(policy || reference) a token, never negative.

    `exp(ref - logp) - (ref - logp) - 1` (Schulman, "Approximating KL
    divergence", 2020), clamped to ±`KL_LIMIT`.
    """
    log_ratio = jnp.clip(ref_logprobs - logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.clip(jnp.exp(log_ratio) - log_ratio - 1.0, -KL_LIMIT, KL_LIMIT)


def grpo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    ref_logprobs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    total: jax.Array,
    config: GrpoLossConfig,
    entropies: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO-clipped policy gradient with a KL term, averaged over `total` tokens.

    Args:
      logprobs: `[R, T]` float32 under the policy that is trained.
      old_logprobs: `[R, T]` float32 under the policy that sampled.
      ref_logprobs: `[R, T]` float32 under the frozen reference.
      advantages: `[R, T]` float32.
      weights: `[R, T]` float32, 1 on sampled tokens, 0 on observations.
      total: scalar, the sum of the weights of the whole mini-batch.
      config: clip bounds and coefficients.
      entropies: `[R, T]` float32, for the metric and the bonus.

    Returns:
      The scalar loss, and the metrics, whose sums over micro-batches are means
      over the mini-batch.
    """
    mean = lambda x: jnp.sum(_trained(x, weights) * weights) / total  # noqa: E731
    logprobs, old_logprobs, ref_logprobs, advantages = (
        _trained(x, weights) for x in (logprobs, old_logprobs, ref_logprobs, advantages)
    )
    log_ratio = jnp.clip(logprobs - old_logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    policy_loss = mean(-jnp.minimum(ratio * advantages, clipped * advantages))
    kl = mean(k3(logprobs, ref_logprobs))
    loss = policy_loss + config.kl_coef * kl
    was_clipped = ratio * advantages > clipped * advantages
    metrics = {
        'policy_loss': policy_loss,
        'kl': kl,
        'ratio': mean(ratio),
        'clip_fraction': mean(was_clipped.astype(jnp.float32)),
    }
    if entropies is not None:
        entropy = mean(entropies)
        loss = loss - config.entropy_coef * entropy
        metrics['entropy'] = entropy
    return loss, metrics | {'loss': loss}


def _trained(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeroes what stands on other tokens: it may be anything, and 0 * inf is NaN."""
    return jnp.where(weights > 0, values, 0.0)
