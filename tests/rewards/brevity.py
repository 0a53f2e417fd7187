"""A reward from outside the package, as docs/EXTENDING.md has it: this file is all it takes."""

from vrag_jax.rewards.registry import reward


@reward('brevity')
def brevity(trajectory) -> float:
    """1 for an answer of one word, 1/2 for one of two; 0 without an answer."""
    words = len((trajectory.answer or '').split())
    return 1.0 / words if words else 0.0
