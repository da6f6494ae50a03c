"""xgen_jax: raw videos to a trained text-to-video model, in JAX.

import xgen_jax

model = xgen_jax.load("runs/quickstart/vdit")
video = model("a red circle moving left", seed=0)  # uint8 (T, H, W, 3)
xgen_jax.show(video)
"""

__version__ = "0.1.0"
__all__ = ["load", "show"]


def load(path):
    """Load a run folder as a callable.

    Args:
      path: the folder of a VDiT run (gives a `TextToVideo`: prompt -> video) or of a VidVAE or
        REGEN run (gives a `Reconstructor`: video -> video).

    Raises:
      UserError: no such folder, or no finished run in it.
    """
    # Imported late, so that `import xgen_jax` costs nothing and commands can set jax up first.
    from xgen_jax.config.runs import HoldsEmbedder
    from xgen_jax.inference.reconstruct import load_reconstructor
    from xgen_jax.inference.text_to_video import load_text_to_video
    from xgen_jax.runs.folder import RunFolder

    embedder = isinstance(RunFolder(path).config(), HoldsEmbedder)
    return (load_reconstructor if embedder else load_text_to_video)(path)


def show(video, fps: float = 8.0, path: str = "video.mp4"):
    """Show a video inline in a notebook, or write it to `path`; see `xgen_jax.inference.show`."""
    from xgen_jax.inference.show import show as show_video

    return show_video(video, fps, path)
