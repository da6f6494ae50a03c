"""Tab of the demo: text to video, and the gallery of what was sampled before."""

import random
from collections.abc import Mapping
from typing import Any

import gradio as gr

from xgen_jax.commands.demo.choices import Choices, length_label
from xgen_jax.commands.demo.gallery import Result
from xgen_jax.commands.demo.parts import (
    QUICK,
    Buttons,
    note,
    owner,
    problem,
    reporter,
    table,
    with_messages,
)
from xgen_jax.commands.demo.studio import Studio
from xgen_jax.commands.sample import parse_size
from xgen_jax.diffusion.samplers import SOLVERS
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoRequest

TAB = "sample"
_SHOWN = 24  # results of the gallery, and as many more with each click


class SampleTab:
    """The components of the tab, and what they do. Made within a `gr.Tab`.

    Args:
      studio: with a model and a gallery.
      choices: what the model can do.
    """

    def __init__(self, studio: Studio, choices: Choices):
        self.studio, self.choices = studio, choices
        assert studio.gallery is not None and studio.model is not None
        self.gallery, self.model = studio.gallery, studio.model
        with gr.Row():
            with gr.Column(min_width=300, scale=5):
                self._settings(choices)
                self.status = gr.HTML(elem_id="sample-status", elem_classes="demo-note")
                self.buttons = Buttons(studio, TAB, "Generate", self.status)
            with gr.Column(min_width=300, scale=6):
                self.video = gr.Video(
                    label="Video",
                    autoplay=True,
                    loop=True,
                    interactive=False,
                    height=380,
                    buttons=["download"],
                    elem_id="sample-video",
                    elem_classes="demo-pixels",
                )
                self.details = gr.HTML(elem_classes="demo-note")
                with gr.Accordion("The same on the command line", open=False):
                    self.command = gr.Textbox(
                        show_label=False, lines=3, interactive=False, buttons=["copy"]
                    )
        self.names, self.limit = gr.State([]), gr.State(_SHOWN)
        gr.HTML(
            "<h2>Earlier results</h2><p>A click shows one, and takes over its settings.</p>",
            elem_classes=["demo-heading", "demo-head"],
        )
        self.earlier = gr.Gallery(
            show_label=False,
            columns=6,
            fit_columns=False,
            height="auto",
            allow_preview=False,
            interactive=False,
            object_fit="contain",
            buttons=[],
            elem_id="sample-gallery",
            elem_classes="demo-pixels",
        )
        self.more = gr.Button("Show more", size="sm", visible=False)
        self._connect()

    def _settings(self, choices: Choices) -> None:
        default = choices.default
        self.prompt = gr.Textbox(
            label="Prompt", lines=2, max_lines=6, autofocus=True, elem_id="sample-prompt"
        )
        with gr.Row(elem_classes="demo-seed"):
            self.seed = gr.Number(
                0,
                label="Seed",
                precision=0,
                minimum=0,
                maximum=2**32 - 1,
                min_width=120,
                elem_id="sample-seed",
            )
            self.random = gr.Button(
                "Random seed", size="sm", min_width=110, elem_id="sample-random"
            )
        with gr.Row():
            self.size = gr.Dropdown(
                [f"{height}x{width}" for height, width in choices.sizes],
                value=f"{default.height}x{default.width}",
                label="Height x width",
                min_width=130,
                elem_id="sample-size",
            )
            self.frames = gr.Dropdown(
                [(length_label(frames, default.fps), frames) for frames in choices.frames],
                value=default.frames,
                label="Length",
                min_width=180,
                elem_id="sample-frames",
            )
        self.steps = gr.Slider(
            1, choices.most_steps, default.steps, step=1, label="Steps", elem_id="sample-steps"
        )
        self.guidance = gr.Slider(
            1,
            choices.most_guidance,
            default.guidance_scale,
            step=0.1,
            label="Guidance scale",
            elem_id="sample-guidance",
        )
        with gr.Accordion("More settings", open=False, elem_id="sample-settings"):
            self.negative = gr.Textbox(
                label="Negative prompt", info="What to guide away from.", elem_id="sample-negative"
            )
            self.sampler = gr.Dropdown(
                sorted(SOLVERS), value=default.sampler, label="Sampler", elem_id="sample-sampler"
            )
        self.warnings = gr.HTML(elem_classes="demo-note")

    @property
    def _controls(self) -> list[Any]:
        return [
            self.prompt,
            self.negative,
            self.seed,
            self.size,
            self.frames,
            self.steps,
            self.guidance,
            self.sampler,
        ]

    def _connect(self) -> None:
        shown = [self.video, self.details, self.command, self.status]
        listed = [self.earlier, self.names, self.more]
        self.random.click(lambda: random.randrange(2**32), None, self.seed, **QUICK)
        plan = [self.size, self.frames, self.steps, self.guidance, self.sampler]
        gr.on([self.size.change, self.frames.change], self._warn, plan, self.warnings, **QUICK)
        ended = self.buttons.connect(
            self._run, self._controls, shown, self.video, [self.prompt.submit]
        )
        ended.then(self._list, self.limit, listed, **QUICK)
        self.more.click(lambda limit: limit + _SHOWN, self.limit, self.limit, **QUICK).then(
            self._list, self.limit, listed, **QUICK
        )
        self.earlier.select(self._show_earlier, self.names, [*shown, *self._controls], **QUICK)

    def load(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """List the gallery when the page is opened, and when the tab is."""
        listed = [self.earlier, self.names, self.more]
        page.load(self._list, self.limit, listed, **QUICK)
        tab.select(self._list, self.limit, listed, **QUICK)

    def _list(self, limit: int):
        """Return updates of the gallery with up to `limit` results."""
        results = self.gallery.results(limit + 1)
        shown = results[:limit]
        pictures = [(str(self.studio.thumbnail(each)), each.settings["prompt"]) for each in shown]
        names = [each.name for each in shown]
        return pictures, names, gr.update(visible=len(results) > limit)

    def _request(self, negative, size, frames, steps, guidance, sampler) -> VideoRequest:
        return VideoRequest(
            size=parse_size(size),
            frames=int(frames),
            steps=int(steps),
            guidance_scale=float(guidance),
            sampler=sampler,
            negative_prompt=(negative or "").strip() or None,  # None before it was ever shown
        )

    def _warn(self, size, frames, steps, guidance, sampler) -> str:
        try:
            plan = self.model.plan(self._request("", size, frames, steps, guidance, sampler))
        except UserError as error:
            return problem(str(error))
        if not plan.warnings:
            return ""
        return note("This may not come out well: " + "; ".join(plan.warnings) + ".")

    def _run(
        self,
        prompt,
        negative,
        seed,
        size,
        frames,
        steps,
        guidance,
        sampler,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008  (how gradio asks for it)
    ):
        def work():
            if not (prompt or "").strip():
                raise UserError("Write a prompt first.")
            asked = self._request(negative, size, frames, steps, guidance, sampler)
            result = self.studio.sample(
                prompt.strip(), int(seed or 0), asked, owner(request, TAB), reporter(progress)
            )
            return self._shown(result)

        return with_messages(self.status, work)

    def _shown(self, result: Result) -> dict[Any, Any]:
        return {
            self.video: str(result.video),
            self.details: table(details(result.settings)),
            self.command: result.command,
        }

    def _show_earlier(self, names: list[str], event: gr.SelectData):
        def work():
            result = self.gallery.result(names[event.index])
            updates = self._shown(result)
            values, left = self._values(result.settings)
            updates |= values
            if left:
                other = ", ".join(left)
                updates[self.status] = note(
                    f"Made with other settings than there are here: {other}."
                )
            return updates

        return with_messages(self.status, work)

    def _values(self, settings: Mapping[str, Any]) -> tuple[dict[Any, Any], list[str]]:
        """Return updates of the controls, and names of settings that they do not have."""
        size = settings.get("size")
        wanted = {
            self.size: ("size", f"{size[0]}x{size[1]}" if size else None),
            self.frames: ("length", settings.get("frames")),
            self.steps: ("steps", settings.get("steps")),
            self.guidance: ("guidance", settings.get("guidance_scale")),
            self.sampler: ("sampler", settings.get("sampler")),
        }
        sizes = {f"{height}x{width}" for height, width in self.choices.sizes}
        can = {
            self.size: sizes.__contains__,
            self.frames: self.choices.frames.__contains__,
            self.steps: range(1, self.choices.most_steps + 1).__contains__,
            self.guidance: lambda value: value and 1 <= value <= self.choices.most_guidance,
            self.sampler: SOLVERS.__contains__,
        }
        updates: dict[Any, Any] = {
            self.prompt: settings["prompt"],
            self.negative: settings.get("negative_prompt") or "",
            self.seed: settings.get("seed", 0),
        }
        left = []
        for control, (name, value) in wanted.items():
            if can[control](value):
                updates[control] = value
            else:
                left.append(name)
        if settings.get("model") != self.studio.source["model"]:
            left.append("model")
        return updates, left


def details(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings of a result for people: (name, value)."""
    rows = [("Prompt", settings["prompt"])]
    if settings.get("negative_prompt"):
        rows.append(("Negative prompt", settings["negative_prompt"]))
    if {"frames", "size", "fps"} <= settings.keys():
        height, width = settings["size"]
        length = length_label(settings["frames"], settings["fps"])
        rows.append(("Video", f"{length}, {height}x{width} at {settings['fps']:g} fps"))
    if {"steps", "sampler", "guidance_scale"} <= settings.keys():
        rows.append(
            (
                "Sampling",
                f"seed {settings.get('seed')}, {settings['steps']} steps of {settings['sampler']}, "
                f"guidance {settings['guidance_scale']:g}",
            )
        )
    if "wall_s" in settings:
        compiling = settings.get("compile_s")
        compiled = f", {compiling:g} s of them to compile" if compiling else ""
        rows.append(("Time", f"{settings['wall_s']:g} s{compiled}"))
    if "created" in settings:
        rows.append(("Made", str(settings["created"])[:16].replace("T", " ")))
    return rows
