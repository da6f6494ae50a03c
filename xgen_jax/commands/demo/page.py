"""The demo's page, by Gradio: its tabs, its look, and the server.

Only `serve` imports it, after the models are loaded: what is wrong with them is said before.
"""

import html
import logging

import gradio as gr

from xgen_jax.commands.demo import reconstruct_tab, sample_tab
from xgen_jax.commands.demo.choices import Choices
from xgen_jax.commands.demo.latent_tab import LatentTab
from xgen_jax.commands.demo.parts import visitor
from xgen_jax.commands.demo.reconstruct_tab import ReconstructTab
from xgen_jax.commands.demo.sample_tab import SampleTab
from xgen_jax.commands.demo.studio import Studio
from xgen_jax.runs.load import describe_embedder

# Fonts of the visitor's system: none is fetched.
_FONT = ["system-ui", "sans-serif"]
_MONOSPACE = ["ui-monospace", "monospace"]
_STYLE = """
.gradio-container { width: 100% !important; max-width: 1120px !important;
  margin: 0 auto !important; }
.demo-head h1 { font-size: 24px; font-weight: 650; margin: 8px 0 2px; overflow-wrap: anywhere; }
.demo-head p { margin: 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.demo-status { margin: 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.demo-problem { color: var(--error-text-color); font-weight: 600; }
.demo-pixels img, .demo-pixels video { image-rendering: pixelated; }
.demo-note:not(:has(p)):not(:has(table)) { display: none; }
#sample-gallery .grid-wrap { min-height: 0 !important; max-height: 640px; }
#sample-gallery .grid-container { padding-top: 0; }
.demo-heading h2 { font-size: 17px; font-weight: 600; margin: 14px 0 0; }
.demo-seed { align-items: end; }
.demo-table, .demo-table tr, .demo-table th, .demo-table td { border: 0 !important; }
.demo-table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 0 0 10px; }
.demo-table th, .demo-table td { padding: 5px 12px 5px 0 !important; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--border-color-primary) !important;
  overflow-wrap: anywhere; }
.demo-table th { color: var(--body-text-color-subdued); font-weight: 500; width: 7em; }
.demo-table td:nth-child(2):not(:last-child) { white-space: nowrap; width: 6em; }
.demo-table td:nth-child(3) { color: var(--body-text-color-subdued); }
@media (max-width: 600px) { .gradio-container { padding: 8px !important; }
  #sample-gallery .grid-container { grid-template-columns: repeat(3, 1fr) !important; } }
"""


def build_page(studio: Studio, choices: Choices | None) -> gr.Blocks:
    """Lay out the page.

    Args:
      studio: what computes.
      choices: what its text-to-video model can do, if it has one.
    """
    if studio.gallery is not None:
        gr.set_static_paths([studio.gallery.folder])  # its files are served from where they are
    title = f"{studio.source['model']} – xgen_jax demo"
    # Files that nobody asked for in an hour are removed every ten minutes.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_head(studio))
        with gr.Tabs():
            if choices is not None:
                with gr.Tab("Generate") as tab:
                    SampleTab(studio, choices).load(page, tab)
            with gr.Tab("Reconstruct"):
                ReconstructTab(studio)
            with gr.Tab("Latent") as tab:
                LatentTab(studio).load(tab)

        def leave(request: gr.Request) -> None:
            studio.leave(visitor(request), (sample_tab.TAB, reconstruct_tab.TAB))

        page.unload(leave)
    return page


def launch_page(page: gr.Blocks, host: str, port: int, max_upload_mb: int, queue_size: int) -> str:
    """Start the server in threads of its own; return its address.

    Args:
      page: see `build_page`.
      host, port, max_upload_mb: see `DemoRequest`.
      queue_size: of gradio's own queue, for those who do not ask the studio first.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the server asks itself whether it runs
    page.queue(max_size=queue_size, default_concurrency_limit=1, api_open=False)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inline=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=max_upload_mb * 10**6,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        state_session_capacity=1000,
        theme=gr.themes.Default(
            primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONOSPACE
        ).set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600"),
        css=_STYLE,
    )
    return url


def close_page(page: gr.Blocks) -> None:
    """End the server; browsers that are connected do not hold it up."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off is meant to be
    if page.is_running:
        page.server.config.timeout_graceful_shutdown = 1
    page.close(verbose=False)


def _head(studio: Studio) -> str:
    reconstructor, model = studio.reconstructor, studio.model
    about = [describe_embedder(reconstructor.embedder, reconstructor.params)]
    if model is not None:
        plan = model.plan()
        about.insert(0, f"text to video, {plan.frames}x{plan.height}x{plan.width} by default")
    return (
        f'<div class="demo-head"><h1>{html.escape(studio.source["model"])}</h1>'
        f"<p>{html.escape('; '.join(about))}</p></div>"
    )
