"""xgen_jax: raw videos to a trained text-to-video model, in JAX."""

__version__ = "0.1.0"
