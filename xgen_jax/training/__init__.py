"""State, optimiser, objectives, step, loop, checkpoints, run folders, metrics."""
