"""What the tasks of a run share: its config, its checks, its context."""
