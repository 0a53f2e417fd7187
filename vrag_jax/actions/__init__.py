"""What the policy may do in a turn: the grammar of its actions, and where a turn stops."""
