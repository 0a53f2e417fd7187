"""The SFT and GRPO losses.

All sums run over tokens with weight > 0 and are divided by a given total, so
that gradient accumulation over micro-batches gives the gradient of the whole.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vrag_jax.learner.variants import (
    AVERAGING,
    CLIP_OBJECTIVES,
    KL_ESTIMATORS,
    RATIOS,
    clipped_difference,
)

DRIFT = 0.01  # A sampler's log-prob that is further from the learner's is counted.


@dataclasses.dataclass(frozen=True)
class GrpoLossConfig:
    """Coefficients and variants of the GRPO loss; see `variants` for what the names mean.

    Attributes:
      objective: how the ratio is clipped: 'ppo', 'dual_clip' or 'cispo'.
      clip_low: lower bound of the probability ratio is `1 - clip_low`; 1 is none.
      clip_high: upper bound is `1 + clip_high`; larger than `clip_low`, it leaves more
        room to unlikely tokens (clip-higher, DAPO, arXiv 2503.14476).
      dual_clip: upper bound of the ratio where advantages are negative, for 'dual_clip'.
      kl_coef: weight of the KL term against the reference policy.
      kl: its estimate, 'k1', 'k2' or 'k3'.
      entropy_coef: weight of the entropy bonus.
      ratio: what is clipped: the 'token' ratio, or the 'sequence' ratio of GSPO.
      averaging: of the loss, by 'token', by 'sequence', or over a 'constant' length.
      constant_length: tokens of that constant.
      importance_cap: tokens' policy losses are multiplied by
        `min(old / sampler, importance_cap)`, the truncated ratio of the learner's and
        the sampler's probability; 0 does without.
    """

    objective: str = 'ppo'
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    kl_coef: float = 0.01
    kl: str = 'k3'
    entropy_coef: float = 0.0
    ratio: str = 'token'
    averaging: str = 'token'
    constant_length: int = 1024
    importance_cap: float = 0.0

    def __post_init__(self):
        if not 0 < self.clip_low <= 1:
            raise ValueError(f'clip_low must be in (0, 1], got {self.clip_low}')
        if self.clip_high <= 0:
            raise ValueError(f'clip_high must be positive, got {self.clip_high}')
        if self.dual_clip <= 1:
            raise ValueError(f'dual_clip must be greater than 1, got {self.dual_clip}')
        if self.kl_coef < 0 or self.entropy_coef < 0:
            raise ValueError('kl_coef and entropy_coef must not be negative')
        if self.constant_length < 1:
            raise ValueError(f'constant_length must be positive, got {self.constant_length}')
        if self.importance_cap < 0:
            raise ValueError(f'importance_cap must not be negative, got {self.importance_cap}')
        CLIP_OBJECTIVES.check(self.objective)
        KL_ESTIMATORS.check(self.kl)
        RATIOS.check(self.ratio)
        AVERAGING.check(self.averaging)


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


def grpo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    ref_logprobs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    total: jax.Array,
    config: GrpoLossConfig,
    entropies: jax.Array | None = None,
    *,
    segment_ids: jax.Array | None = None,
    sampler_logprobs: jax.Array | None = None,
    tokens: jax.Array | None = None,
    old_is_current: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped policy gradient with a KL term, averaged over `total`.

    Args:
      logprobs: `[R, T]` float32 under the policy that is trained.
      old_logprobs: `[R, T]` float32 under the policy before the mini-batch's rollout
        is first trained on.
      ref_logprobs: `[R, T]` float32 under the frozen reference; not read where
        `kl_coef` is 0, and there is no metric 'kl' then.
      advantages: `[R, T]` float32.
      weights: `[R, T]` float32, positive on sampled tokens, 0 on observations.
      total: scalar, what the weighted sums are divided by.
      config: coefficients and variants.
      entropies: `[R, T]` float32, for the metric and the bonus.
      segment_ids: `[R, T]` int32, for the ratio of sequences.
      sampler_logprobs: `[R, T]` float32 as the sampler worked them out; gives the
        drift, and the weights of `importance_cap`.
      tokens: scalar, trained tokens of the whole mini-batch, by which metrics are
        averaged; None is `total`.
      old_is_current: whether the old policy is the one that is trained, as in a single
        update after a rollout; `old_logprobs` is not read then.

    Returns:
      The scalar loss, and the metrics, whose sums over micro-batches are means over
      the tokens of the mini-batch (of 'drift_max' the maximum is to be taken).
    """
    tokens = total if tokens is None else tokens
    trained = weights > 0
    mean = lambda x: jnp.sum(jnp.where(trained, x, 0.0)) / tokens  # noqa: E731
    average = lambda x: jnp.sum(_trained(x, weights) * weights) / total  # noqa: E731
    logprobs, ref_logprobs, advantages = (
        _trained(x, weights) for x in (logprobs, ref_logprobs, advantages))
    current = jax.lax.stop_gradient(logprobs)
    old = current if old_is_current else _trained(old_logprobs, weights)
    log_ratio = clipped_difference(logprobs, old)
    if config.ratio != 'token' and segment_ids is None:
        raise ValueError(f'ratio = {config.ratio!r} needs segment_ids')
    ratio = jnp.exp(RATIOS[config.ratio](log_ratio, trained, segment_ids))
    losses, was_clipped = CLIP_OBJECTIVES[config.objective](logprobs, ratio, advantages, config)
    metrics = {}
    if sampler_logprobs is not None:
        sampler = _trained(sampler_logprobs, weights)
        if config.importance_cap:
            importance = jnp.exp(clipped_difference(jax.lax.stop_gradient(old), sampler))
            losses = losses * jnp.minimum(importance, config.importance_cap)
            metrics['importance'] = mean(importance)
        drift = jnp.abs(current - sampler)
        metrics |= {'drift_mean': mean(drift), 'drift_max': jnp.max(drift),
                    'drift_share': mean((drift > DRIFT).astype(jnp.float32))}
    loss = policy_loss = average(losses)
    if config.kl_coef:
        kl = KL_ESTIMATORS[config.kl](logprobs, ref_logprobs)
        loss = loss + config.kl_coef * average(kl)
        metrics['kl'] = mean(kl)
    metrics |= {
        'policy_loss': policy_loss,
        'ratio': mean(ratio),
        'clip_fraction': mean(was_clipped.astype(jnp.float32)),
    }
    if entropies is not None:
        loss = loss - config.entropy_coef * average(entropies)
        metrics['entropy'] = mean(entropies)
    return loss, metrics | {'loss': loss}


def _trained(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeroes what stands on other tokens: it may be anything, and 0 * inf is NaN."""
    return jnp.where(weights > 0, values, 0.0)
