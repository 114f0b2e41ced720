"""State, step, loop, checkpoints, metrics: knows no model."""
