"""Show a video in a notebook, or write it to a file elsewhere."""

import base64
import pathlib
import sys
import tempfile

from xgen_jax.data.video_writer import write_video
from xgen_jax.typing import Video


def show(video: Video, fps: float = 8.0, path: str = "video.mp4", height: int = 256):
    """Show a video inline in Jupyter and Colab; elsewhere write an mp4 and print its path.

    Args:
      video: uint8 (T, H, W, 3).
      fps: frames per second.
      path: of the file to write outside a notebook; "-2", "-3", ... is added to a name that is
        taken.
      height: of the video on the page, in pixels.

    Returns:
      The display object in a notebook (so that it may be a cell's last line), else the path
      written.
    """
    if _in_notebook():
        from IPython.display import HTML

        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "video.mp4"
            write_video(file, video, fps)
            data = base64.b64encode(file.read_bytes()).decode()
        return HTML(
            f'<video src="data:video/mp4;base64,{data}" height="{height}" '
            'style="image-rendering: pixelated" autoplay loop muted playsinline controls></video>'
        )
    target, number = pathlib.Path(path), 1
    while target.exists():
        number += 1
        target = pathlib.Path(path).with_stem(f"{pathlib.Path(path).stem}-{number}")
    write_video(target, video, fps)
    print(f"wrote {target}", file=sys.stderr)
    return target


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")
