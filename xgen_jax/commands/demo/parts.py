"""Parts that the tabs of the demo's page share: messages, tables, owners, what happens on errors.

All that comes from a visitor, a file or the gallery is escaped.
"""

import html
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

from xgen_jax.commands.demo.studio import Interrupted, Owner, Studio
from xgen_jax.errors import UserError

DEVICE = "device"  # what computes takes turns on it
# Of events that compute nothing: at once, and not for programs.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# Of events that compute.
TURN: dict[str, Any] = {
    "concurrency_id": DEVICE,
    "concurrency_limit": 1,
    "api_visibility": "private",
}


def note(text: str = "") -> str:
    """Return a message as HTML."""
    return f'<p class="demo-status" role="status">{html.escape(text)}</p>' if text else ""


def problem(text: str) -> str:
    """Return a message on what is wrong as HTML."""
    return f'<p class="demo-status demo-problem" role="alert">{html.escape(text)}</p>'


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows of (name, value) or (name, value, explanation) as HTML."""
    lines = []
    for name, *values in rows:
        cells = "".join(f"<td>{html.escape(str(value))}</td>" for value in values)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f'<table class="demo-table">{"".join(lines)}</table>'


def visitor(request: gr.Request) -> str:
    """Return the page that is open in a browser, for the studio."""
    return request.session_hash or ""


def owner(request: gr.Request, tab: str) -> Owner:
    """Return the owner of what is computed for a tab."""
    return Owner(visitor(request), tab)


def reporter(progress: gr.Progress) -> Callable[[int, int, str], None]:
    """Return what the studio calls as it goes on, shown by gradio."""

    def report(done: int, total: int, text: str) -> None:
        if total:
            progress((done, total), desc=text)
        else:
            progress(0.0, desc=text)

    return report


def with_messages(status: gr.HTML, work: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """Return the updates of `work`, or a message in `status`: no visitor sees a traceback."""
    try:
        return {status: note(), **work()}
    except UserError as error:
        return {status: problem(str(error))}
    except Interrupted:
        return {status: note("Stopped.")}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return {
            status: problem(
                f"This should not happen: {type(error).__name__}. Please report it, with what the "
                "server has printed."
            )
        }


_WORKING = note("Working.")


class Buttons:
    """A button that starts what takes time, and one that stops it.

    Args:
      studio: that computes.
      tab: name for `owner`.
      label: of the button that starts.
      status: for messages.
    """

    def __init__(self, studio: Studio, tab: str, label: str, status: gr.HTML):
        self._studio, self._tab, self._status = studio, tab, status
        with gr.Row():
            self.start = gr.Button(label, variant="primary", elem_id=f"{tab}-start")
            self.stop = gr.Button("Stop", visible=False, elem_id=f"{tab}-stop")

    def connect(self, run: Callable, inputs, outputs, progress_on, triggers=()) -> Any:
        """Let the button (and other `triggers`) call `run`; return what follows it.

        `run` returns updates as a dict; the status is among its outputs.
        """
        both = [self.start, self.stop]
        events = [self.start.click, *triggers]
        asked = gr.on(events, self._asking, None, self._status, trigger_mode="once", **QUICK)
        started = asked.then(self._starting, self._status, both, **QUICK)
        ran = started.success(run, inputs, outputs, show_progress_on=progress_on, **TURN)
        self.stop.click(self._stopping, None, [self._status, self.stop], **QUICK)
        return ran.then(self._ended, None, both, **QUICK)

    def _asking(self, request: gr.Request):
        try:
            self._studio.admit(owner(request, self._tab))
        except UserError as error:
            return problem(str(error))
        return _WORKING

    def _starting(self, status: str):
        if status != _WORKING:  # what follows is for who was admitted
            raise gr.Error("refused", print_exception=False, visible=False)
        return gr.update(interactive=False), gr.update(visible=True, interactive=True)

    def _stopping(self, request: gr.Request):
        self._studio.stop(owner(request, self._tab))
        return note("Stopping after this step."), gr.update(interactive=False)

    def _ended(self, request: gr.Request):
        self._studio.release(owner(request, self._tab))
        return gr.update(interactive=True), gr.update(visible=False)
