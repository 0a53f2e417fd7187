"""A clip objective from outside the package, as docs/EXTENDING.md has it: this file is all."""

import jax.numpy as jnp

from vrag_jax.learner.variants import CLIP_OBJECTIVES


@CLIP_OBJECTIVES.add('unclipped')
def unclipped(logprobs, ratio, advantages, config):
    """`-r A`: the policy gradient with importance weights, whatever they are."""
    return -ratio * advantages, jnp.zeros(ratio.shape, bool)
