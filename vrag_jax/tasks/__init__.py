"""One short module a task: reads the config and wires the rooms together."""
