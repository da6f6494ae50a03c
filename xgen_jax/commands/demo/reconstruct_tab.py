"""Tab of the demo: an uploaded video, reconstructed."""

from typing import Any

import gradio as gr

from xgen_jax.commands.demo.parts import Buttons, owner, reporter, table, with_messages
from xgen_jax.commands.demo.studio import Studio
from xgen_jax.errors import UserError

TAB = "reconstruct"
_SPEEDS = [
    ("as filmed", 1.0),
    ("half, twice as slow", 0.5),
    ("a quarter", 0.25),
    ("an eighth", 0.125),
    ("double", 2.0),
]
# key of `compare` -> name, format, what it means.
_FIGURES = {
    "psnr_db": ("PSNR", "{:.2f} dB", "higher is closer; rewards blur"),
    "ssim": ("SSIM", "{:.4f}", "1 is equal in structure"),
    "sharpness": ("Sharpness", "{:.3f}", "1 is natural, below is blurred, above is noise"),
    "blockiness": ("Blockiness", "{:.3f}", "1 is natural, above is a mesh of patches"),
}


class ReconstructTab:
    """The components of the tab, and what they do. Made within a `gr.Tab`."""

    def __init__(self, studio: Studio):
        self.studio = studio
        with gr.Row():
            with gr.Column(min_width=300, scale=5):
                self.file = gr.File(
                    label="Video file (mp4, mov, webm, mkv, avi, gif)",
                    height=150,
                    elem_id="reconstruct-file",
                )
                with gr.Row():
                    self.start = gr.Number(0, label="From second", minimum=0, min_width=120)
                    self.seconds = gr.Number(
                        min(2.0, studio.max_seconds),
                        label=f"Seconds, up to {studio.max_seconds:g}",
                        minimum=0,
                        maximum=studio.max_seconds,
                        min_width=120,
                    )
                generative = studio.decode_steps is not None
                with gr.Row(visible=generative):
                    self.steps = gr.Slider(
                        1,
                        max(16, studio.decode_steps or 1),
                        studio.decode_steps or 1,
                        step=1,
                        label="Decoder steps",
                        min_width=130,
                        elem_id="reconstruct-steps",
                    )
                    self.speed = gr.Dropdown(
                        _SPEEDS,
                        value=1.0,
                        label="Speed",
                        min_width=130,
                        elem_id="reconstruct-speed",
                    )
                self.status = gr.HTML(elem_id="reconstruct-status", elem_classes="demo-note")
                self.buttons = Buttons(studio, TAB, "Reconstruct", self.status)
            with gr.Column(min_width=300, scale=6):
                self.video = gr.Video(
                    label="Original left, reconstruction right",
                    autoplay=True,
                    loop=True,
                    interactive=False,
                    height=380,
                    buttons=["download"],
                    elem_id="reconstruct-video",
                    elem_classes="demo-pixels",
                )
                self.figures = gr.HTML(elem_id="reconstruct-figures", elem_classes="demo-note")
        self.ended = self.buttons.connect(
            self._run,
            [self.file, self.start, self.seconds, self.steps, self.speed],
            [self.video, self.figures, self.status],
            self.video,
        )

    def _run(
        self,
        file,
        start,
        seconds,
        steps,
        speed,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008  (how gradio asks for it)
    ):
        def work() -> dict[Any, Any]:
            if not file:
                raise UserError("Choose a video file first.")
            options: dict[str, Any] = {}
            if self.studio.decode_steps is not None:
                options = {"steps": int(steps), "speed": float(speed)}
            made = self.studio.reconstruct(
                file,
                owner(request, TAB),
                reporter(progress),
                start_s=float(start or 0),
                seconds=float(seconds or 0),
                **options,
            )
            rows = [
                (name, form.format(made.figures[key]), meaning)
                for key, (name, form, meaning) in _FIGURES.items()
            ]
            facts = [(name.capitalize(), value) for name, value in made.facts.items()]
            return {self.video: str(made.video), self.figures: table(rows) + table(facts)}

        return with_messages(self.status, work)
