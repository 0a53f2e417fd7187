"""The reward of a trajectory: a weighted sum of retrieval, answer and pattern."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """Weights of r = alpha * r_Ret + beta * r_Ans + gamma * r_Pat, which sum to 1.

    Attributes:
      alpha: of the retrieval reward.
      beta: of the answer reward.
      gamma: of the pattern reward; the paper takes 0 after SFT, 0.1 without it.
      pattern_gate: whether the whole reward is 0 where the pattern fails, as in
        the paper's public code.
    """

    alpha: float
    beta: float
    gamma: float
    pattern_gate: bool = True

    def __post_init__(self):
        for name in ('alpha', 'beta', 'gamma'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be in [0, 1], got {getattr(self, name)}')
        total = self.alpha + self.beta + self.gamma
        if abs(total - 1) > 1e-6:
            raise ValueError(f'alpha + beta + gamma must be 1, got {total}')


def combine(
    weights: RewardWeights, retrieval: float, answer: float, pattern: float
) -> dict[str, float]:
    """Adds up the parts of a trajectory's reward.

    Args:
      weights: what each part counts.
      retrieval: NDCG of the retrieved pages, in [0, 1].
      answer: the judge's score, in [0, 1].
      pattern: 1 if the trajectory has the required form, else 0.

    Returns:
      The parts under 'retrieval', 'answer', 'pattern', and 'total' in [0, 1].

    Raises:
      ValueError: if a part is outside [0, 1] or not a number.
    """
    parts = {'retrieval': retrieval, 'answer': answer, 'pattern': pattern}
    for name, value in parts.items():
        if not 0 <= value <= 1:
            raise ValueError(f'the {name} reward must be in [0, 1], got {value}')
    total = weights.alpha * retrieval + weights.beta * answer + weights.gamma * pattern
    if weights.pattern_gate and pattern < 1:
        total = 0.0
    return {**parts, 'total': total}
