"""Advantages of grouped trajectories."""

import numpy as np


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
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f'rewards must be [groups, group_size >= 2], got shape {rewards.shape}')
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    std = rewards.std(axis=1, ddof=1, keepdims=True)
    return (centred / (std + epsilon)).astype(np.float32)
