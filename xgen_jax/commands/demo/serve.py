"""Serve the demo: `launch/demo.py`."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from xgen_jax.commands.demo.choices import make_choices
from xgen_jax.commands.demo.gallery import Gallery
from xgen_jax.commands.demo.studio import Studio
from xgen_jax.config.runs import HoldsEmbedder
from xgen_jax.errors import UserError
from xgen_jax.inference.reconstruct import Reconstructor, load_reconstructor
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.runs.checkpoint import LATEST
from xgen_jax.runs.folder import RunFolder
from xgen_jax.signals import Stopped

_LOCAL = ("127.0.0.1", "::1", "localhost")
_END_S = 2.0  # for a computation to notice that the server ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """The flags of `launch/demo.py`.

    Attributes:
      model: folder of a text-to-video model, or of an embedder: a run, or converted weights.
      embedder, text_encoder, lora, offload: see `load_text_to_video`; for a text-to-video model.
      restore: checkpoint of the model: "latest", "latest_good", which steps over damaged ones,
        "best" (see `LoopConfig.keep_best`), or the number of a step.
      memory_budget_gb: what a device may use, in GB (1e9 bytes).
      gallery: folder of the samples; shared by all who open the page.
      host, port: the address to serve; port 0 takes a free one.
      max_upload_mb: largest file to upload, in MB (1e6 bytes).
      max_seconds, max_side: see `Studio`.
      queue_size: requests that may wait for the device; more are refused.

    Raises:
      UserError: missing values, or ones out of range.
    """

    model: str = ""
    embedder: str | None = None
    text_encoder: str | None = None
    lora: str | None = None
    restore: str = LATEST
    offload: bool = False
    memory_budget_gb: float | None = None
    gallery: str = "runs/demo"
    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_mb: int = 200
    max_seconds: float = 10.0
    max_side: int = 512
    queue_size: int = 16

    def __post_init__(self):
        if missing := [name for name in ("model", "gallery", "host") if not getattr(self, name)]:
            raise UserError(f"give --{missing[0]}")
        for name in ("max_upload_mb", "max_seconds", "max_side", "queue_size"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"--{name}={value} must be above 0")
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port={self.port} must be 0 .. 65535")


def serve_demo(request: DemoRequest) -> NoReturn:
    """Serve the demo until the process is asked to end.

    Raises:
      UserError: gradio is not installed, the folder holds no model, an address that cannot be
        served; whatever loading refuses.
      KeyboardInterrupt: it was asked to end.
    """
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="xgen_jax-demo-"))
        )
        url = stack.enter_context(demo_server(request, folder))
        print(f"the demo of {request.model} is at {url} (Ctrl-C ends it)", file=sys.stderr)
        if request.host not in _LOCAL:
            print(
                f"--host={request.host}: everyone who can reach this machine can use the demo, "
                "upload files, and see all prompts and videos of the gallery",
                file=sys.stderr,
            )
        threading.Event().wait()  # a signal ends it
    raise AssertionError("nothing sets the event")


@contextlib.contextmanager
def demo_server(request: DemoRequest, folder: pathlib.Path) -> Iterator[str]:
    """Serve the demo within a `with` block, and give its address.

    Args:
      request: see `DemoRequest`.
      folder: for uploads and other files that end with the server.

    Raises:
      UserError: see `serve_demo`.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the demo needs gradio: pip install -e ".[demo]"')
    port = _free_port(request.host, request.port)
    studio = make_studio(request, folder)
    model = studio.model
    choices = None if model is None else make_choices(model.config, model.networks.embedder)
    # Read when gradio is imported, or when it starts.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    for name in ("no_proxy", "NO_PROXY"):  # it asks itself whether it runs
        known = os.environ.get(name)
        os.environ[name] = ",".join([known, *_LOCAL] if known else _LOCAL)
    from xgen_jax.commands.demo.page import build_page, close_page, launch_page

    page = build_page(studio, choices)
    try:
        url = launch_page(page, request.host, port, request.max_upload_mb, 4 * request.queue_size)
        yield url
    except KeyboardInterrupt as error:
        if not studio.close(_END_S):
            # Python cannot end while a thread compiles.
            print("interrupted while it was computing", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(error.exit_code if isinstance(error, Stopped) else 130)
        raise
    finally:
        studio.close(0.0)
        close_page(page)


def make_studio(request: DemoRequest, folder: pathlib.Path) -> Studio:
    """Load the models of a request.

    Args:
      request: see `DemoRequest`.
      folder: for files that end with the server.

    Raises:
      UserError: the folder holds no model, or flags that are for a model of another kind.
    """
    limits: dict[str, Any] = {
        "max_seconds": request.max_seconds,
        "max_side": request.max_side,
        "max_waiting": request.queue_size,
    }
    source = {"model": request.model}
    if isinstance(RunFolder(request.model).config(), HoldsEmbedder):
        for name in ("embedder", "text_encoder", "lora", "offload"):
            if getattr(request, name):
                raise UserError(
                    f"--{name} is for a text-to-video model, and {request.model} holds an embedder"
                )
        reconstructor = load_reconstructor(
            request.model, request.memory_budget_gb, checkpoint=request.restore
        )
        return Studio(
            reconstructor=reconstructor,
            model=None,
            gallery=None,
            folder=folder,
            source=source,
            **limits,
        )
    gallery = Gallery(request.gallery)
    gallery.remove_unfinished()
    model = load_text_to_video(
        request.model,
        request.embedder,
        step=request.restore,
        text_encoder=request.text_encoder,
        lora=request.lora,
        offload=request.offload,
        memory_budget_gb=request.memory_budget_gb,
    )
    for name in ("embedder", "text_encoder", "lora"):
        if value := getattr(request, name):
            source[name] = value
    if request.restore != LATEST:
        source["restore"] = request.restore
    reconstructor = Reconstructor(
        embedder=model.networks.embedder,
        params=model.networks.params["embedder"],
        memory_budget_gb=request.memory_budget_gb,
    )
    return Studio(
        reconstructor=reconstructor,
        model=model,
        gallery=gallery,
        folder=folder,
        source=source,
        **limits,
    )


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; UserError if the address cannot be served."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as server:
            return server.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"--host={host} --port={port} cannot be served ({error.strerror or error}); give "
            "another --port, or 0 for a free one"
        ) from error
