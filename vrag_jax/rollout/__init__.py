"""Episodes, trajectories and the loop that drives them against the sampler."""
