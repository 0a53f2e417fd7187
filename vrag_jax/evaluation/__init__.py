"""What a policy has reached: figures, saved trajectories and the report."""
