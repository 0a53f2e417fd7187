"""The published variants of GRPO, by the names that a config gives them.

A config file can add its own before it names it:

    from vrag_jax.learner import variants

    @variants.ADVANTAGES.add('clipped')
    def clipped(rewards):
        return np.clip(variants.ADVANTAGES['group_mean'](rewards), -1, 1)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrag_jax.registry import Registry

KL_LIMIT = 10.0  # Estimates are clamped to [-10, 10], as k3 is in the VRAG-RL code.
# exp() of a larger log-ratio would overflow, and 0 * inf in its gradient is NaN;
# k3 and the clipped ratio are far past their own limits there.
LOG_RATIO_LIMIT = 20.0


# `(logprobs, ref_logprobs) -> [R, T]`, estimates of KL(policy || reference) a token from
# a sample of the policy (Schulman, "Approximating KL divergence", 2020).
KL_ESTIMATORS = Registry('kl')
# `(log_ratio [R, T], trained [R, T] bool, segment_ids [R, T]) -> [R, T]` log-ratios that
# are clipped.
RATIOS = Registry('ratio')
# `(logprobs, ratio, advantages, config) -> (losses [R, T], clipped [R, T] bool)`, the policy loss
# of each token and whether the bounds have changed it, for the metric 'clip_fraction'; `ratio`
# is exp of what `RATIOS` gives, `config` the `GrpoLossConfig`.
CLIP_OBJECTIVES = Registry('objective')
# `(rewards [groups, group_size]) -> [groups, group_size]` float32.
ADVANTAGES = Registry('advantages')
# `(lengths [N], constant) -> (weights [N], total)`: the loss is the sum over trained
# tokens of their sequence's weight times their loss, divided by the total. A sequence that
# is left out of the loss has length 0.
AVERAGING = Registry('averaging')


def clipped_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a - b`, bounded so that its exponential is finite."""
    return jnp.clip(a - b, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


@KL_ESTIMATORS.add('k1')
def k1(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """`logp - ref`: unbiased, of either sign.

    As a loss it does nothing on average: the expectation of its gradient on the
    policy's own samples is that of a score, zero. It is here to be compared with.
    """
    return jnp.clip(clipped_difference(logprobs, ref_logprobs), -KL_LIMIT, KL_LIMIT)


@KL_ESTIMATORS.add('k2')
def k2(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """`(logp - ref)^2 / 2`: biased; its gradient is an unbiased one of the KL."""
    return jnp.clip(0.5 * clipped_difference(logprobs, ref_logprobs) ** 2, -KL_LIMIT, KL_LIMIT)


@KL_ESTIMATORS.add('k3')
def k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """`exp(ref - logp) - (ref - logp) - 1`: unbiased and never negative."""
    log_ratio = clipped_difference(ref_logprobs, logprobs)
    return jnp.clip(jnp.exp(log_ratio) - log_ratio - 1.0, -KL_LIMIT, KL_LIMIT)


@RATIOS.add('token')
def token_ratio(log_ratio: jax.Array, trained: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Every token's own ratio, as in PPO and GRPO (arXiv 2402.03300)."""
    del trained, segment_ids
    return log_ratio


@RATIOS.add('sequence')
def sequence_ratio(log_ratio: jax.Array, trained: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The mean over the sequence's trained tokens: GSPO (arXiv 2507.18071, eq. 7).

    All tokens of a sequence are then clipped or none, and each gets the gradient of
    the sequence's ratio. To average as GSPO does, take 'sequence' for that, too.
    """
    def means(values, mask, segments):
        count = values.shape[0] + 1  # Segments of a row are numbered from 1; 0 is padding.
        add = lambda x: jax.ops.segment_sum(x, segments, count)  # noqa: E731
        return (add(jnp.where(mask, values, 0.0)) / jnp.maximum(add(mask.astype(jnp.float32)), 1)
                )[segments]

    return jax.vmap(means)(log_ratio, trained, segment_ids)


Objective = tuple[jax.Array, jax.Array]


def _bounded(ratio: jax.Array, config: Any) -> jax.Array:
    return jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)


@CLIP_OBJECTIVES.add('ppo')
def ppo(logprobs: jax.Array, ratio: jax.Array, advantages: jax.Array, config: Any) -> Objective:
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` (PPO, arXiv 1707.06347, eq. 7).

    With the ratio of a 'sequence' it is GSPO's (arXiv 2507.18071, eq. 5).
    """
    del logprobs
    free, clipped = ratio * advantages, _bounded(ratio, config) * advantages
    return -jnp.minimum(free, clipped), free > clipped


@CLIP_OBJECTIVES.add('dual_clip')
def dual_clip(logprobs: jax.Array, ratio: jax.Array, advantages: jax.Array, config: Any
              ) -> Objective:
    """PPO's, but `-max(min(r A, clip(r) A), c A)` where A < 0 (arXiv 1912.09729).

    PPO has no upper bound on `r` there, and a single token that became much likelier can
    outweigh all others. `c` is `config.dual_clip`.
    """
    losses, clipped = ppo(logprobs, ratio, advantages, config)
    bound = -config.dual_clip * advantages
    far = (advantages < 0) & (losses > bound)
    return jnp.where(far, bound, losses), clipped | far


@CLIP_OBJECTIVES.add('cispo')
def cispo(logprobs: jax.Array, ratio: jax.Array, advantages: jax.Array, config: Any) -> Objective:
    """`-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logp` (CISPO, arXiv 2506.13585, eq. 4).

    `sg` stops the gradient: the importance weight is clipped instead of the update, so that
    every token has a gradient. The authors have no lower bound: `clip_low = 1`.
    """
    weight = jax.lax.stop_gradient(_bounded(ratio, config))
    return -weight * advantages * logprobs, weight != ratio


def _groups(rewards: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f'rewards must be [groups, group_size >= 2], got shape {rewards.shape}')
    return rewards


@ADVANTAGES.add('group_normalised')
def group_normalised(rewards: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """GRPO advantages: rewards normalised within their group.

    `(r - mean) / (std + epsilon)` with the unbiased standard deviation
    (DeepSeekMath, arXiv 2402.03300, outcome supervision; the divisor n - 1 is
    the one of the VRAG-RL code).

    Args:
      rewards: `[groups, group_size]` float rewards of complete trajectories.
      epsilon: added to the standard deviation.

    Returns:
      `[groups, group_size]` float32 advantages; a group with equal rewards gets 0.

    Raises:
      ValueError: if `rewards` is not two-dimensional or a group has one member.
    """
    rewards = _groups(rewards)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    std = rewards.std(axis=1, ddof=1, keepdims=True)
    return (centred / (std + epsilon)).astype(np.float32)


@ADVANTAGES.add('group_mean')
def group_mean(rewards: np.ndarray) -> np.ndarray:
    """`r - mean` of the group: without the scale, which favours questions that are nearly
    always or nearly never answered (Dr. GRPO, arXiv 2503.20783)."""
    rewards = _groups(rewards)
    return (rewards - rewards.mean(axis=1, keepdims=True)).astype(np.float32)


@ADVANTAGES.add('leave_one_out')
def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """`r` minus the mean of the group's others: RLOO (arXiv 2402.14740)."""
    rewards = _groups(rewards)
    size = rewards.shape[1]
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (size - 1)
    return (rewards - others).astype(np.float32)


@AVERAGING.add('token')
def token_mean(lengths: np.ndarray, constant: int) -> tuple[np.ndarray, float]:
    """The mean over all trained tokens: long sequences count more (DAPO, arXiv 2503.14476)."""
    del constant
    return np.ones(len(lengths), np.float32), float(lengths.sum())


@AVERAGING.add('sequence')
def sequence_mean(lengths: np.ndarray, constant: int) -> tuple[np.ndarray, float]:
    """The mean over sequences of the mean over their tokens (GRPO, arXiv 2402.03300).

    Sequences without a trained token are not counted.
    """
    del constant
    weights = 1.0 / np.maximum(lengths, 1)
    return weights.astype(np.float32), float((lengths > 0).sum())


@AVERAGING.add('constant')
def constant_mean(lengths: np.ndarray, constant: int) -> tuple[np.ndarray, float]:
    """The sum over tokens divided by a constant length, averaged over sequences, also those
    that are left out: a token counts the same in every mini-batch of as many sequences (Dr.
    GRPO, arXiv 2503.20783)."""
    return np.ones(len(lengths), np.float32), float(len(lengths) * constant)
