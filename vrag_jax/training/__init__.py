"""Training phases: the loop, SFT, GRPO, and the rollouts they learn from."""
