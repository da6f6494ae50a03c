"""Tab of the demo: the latent frames of the last sample or reconstruction, one after another."""

from typing import Any

import gradio as gr

from xgen_jax.commands.demo.latent_view import PRINCIPAL, LatentView
from xgen_jax.commands.demo.parts import QUICK, note, visitor
from xgen_jax.commands.demo.studio import Studio

_NOTHING = "Nothing yet: make a video in another tab first."


class LatentTab:
    """The components of the tab, and what they do. Made within a `gr.Tab`."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.status = gr.HTML(note(_NOTHING), elem_id="latent-status")
        with gr.Column(visible=False) as self.all:
            with gr.Row():
                self.place = gr.Slider(
                    0,
                    1,
                    0,
                    step=1,
                    label="Latent frame",
                    buttons=[],
                    min_width=260,
                    elem_id="latent-place",
                )
                self.view = gr.Dropdown(
                    [PRINCIPAL], value=PRINCIPAL, label="Show", min_width=260, elem_id="latent-view"
                )
            with gr.Row():
                self.latent = _picture("Latent frame", "latent-picture")
                self.decoded = _picture("What it decodes to", "latent-decoded")
            self.caption = gr.HTML(elem_id="latent-caption")
            self.strip = _picture("All latent frames", "latent-strip", height=260)
        pictures = [self.latent, self.decoded, self.caption]
        self.place.change(self._step, [self.view, self.place], pictures, **QUICK)
        self.view.input(self._show, [self.view, self.place], [*pictures, self.strip], **QUICK)

    def load(self, tab: gr.Tab) -> None:
        """Show the newest latents when the tab is opened."""
        pictures = [self.latent, self.decoded, self.caption, self.strip]
        tab.select(
            self._open, None, [self.all, self.status, self.view, self.place, *pictures], **QUICK
        )

    def _open(self, request: gr.Request):
        latents = self.studio.latents(visitor(request))
        if latents is None:
            return {self.all: gr.update(visible=False), self.status: note(_NOTHING)}
        last = len(latents.latents) - 1
        return {
            self.all: gr.update(visible=True),
            self.status: note(f"Latents of {latents.title}."),
            self.view: gr.update(choices=latents.views, value=PRINCIPAL),
            self.place: gr.update(maximum=max(1, last), value=0, interactive=last > 0),
            self.strip: latents.strip(),
            **self._pictures(latents, PRINCIPAL, 0),
        }

    def _step(self, view: str, place: float, request: gr.Request):
        latents = self.studio.latents(visitor(request))
        if latents is None:
            return {self.caption: note("These latents are no longer kept; make the video again.")}
        return self._pictures(latents, view, place)

    def _show(self, view: str, place: float, request: gr.Request):
        latents = self.studio.latents(visitor(request))
        updates = self._step(view, place, request)
        return updates if latents is None else {**updates, self.strip: latents.strip(view)}

    def _pictures(self, latents: LatentView, view: str, place: float) -> dict[Any, Any]:
        at = min(max(int(place), 0), len(latents.latents) - 1)
        # Another clip may have fewer channels than the one that the list was made for.
        view = view if view in latents.views else PRINCIPAL
        return {
            self.latent: latents.picture(at, view),
            self.decoded: latents.decoded(at),
            self.caption: note(latents.caption(at)),
        }


def _picture(label: str, elem_id: str, height: int = 330) -> gr.Image:
    return gr.Image(
        label=label,
        height=height,
        format="png",
        interactive=False,
        buttons=[],
        min_width=280,
        elem_id=elem_id,
        elem_classes="demo-pixels",
    )
