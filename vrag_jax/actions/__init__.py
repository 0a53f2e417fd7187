"""What the policy may do in a turn: a file for each action, their grammar, where a turn stops."""
