"""Sources of clips, buckets, video files and the pipeline: NumPy, Grain and PyAV, never JAX."""
