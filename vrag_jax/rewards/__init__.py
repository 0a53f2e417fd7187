"""What a trajectory earns: retrieval, answer and pattern rewards, and their sum."""
