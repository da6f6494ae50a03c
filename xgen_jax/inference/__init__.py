"""Loaded models as callables: sampling, streaming, reconstruction."""
