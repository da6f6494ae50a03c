"""The training loop: tasks, state, optimiser, metrics."""
