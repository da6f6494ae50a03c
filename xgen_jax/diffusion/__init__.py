"""Pure functions on arrays: processes, time sampling, losses, guidance, samplers. No flax here."""
