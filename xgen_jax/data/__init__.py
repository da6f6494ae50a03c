"""Sources, transforms, video files and the pipeline. NumPy, Grain and PyAV; never a JAX device."""
