"""What a trajectory earns: rewards by name, judges of answers, the weighted sum and its gate."""
