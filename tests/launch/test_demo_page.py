"""The demo as a person uses it: launch/demo.py, driven in a headless Chromium."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from browser import chromium, overflow, watch
from test_commands import ROOT, command

from xgen_jax.data.video_writer import write_video

pytestmark = pytest.mark.slow

PLAYS = """async () => {
  const video = document.querySelector("#sample-video video");
  if (video.readyState < 3) return false;
  const before = video.currentTime;
  await new Promise(resolve => setTimeout(resolve, 200));
  return video.currentTime != before;
}"""


@contextlib.contextmanager
def served(*flags, stop=signal.SIGINT):
    """Serve the demo and give its address; end it by a signal, as a person or a scheduler does."""
    # In the background of a shell the tests ignore the interrupt, and what they start would do so
    # too.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command("demo", "--port=0", *flags),
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, ignored)
    lines, ready = [], threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if "(Ctrl-C ends it)" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(120) and process.poll() is None, "".join(lines)
        yield re.search(r"http://\S+", lines[-1])[0]
        process.send_signal(stop)
        assert process.wait(60) == 128 + stop, "".join(lines)
        reader.join()  # all is read
        text = "".join(lines)
        assert process.stdout.read() == "" and "Traceback" not in text, text
        assert "interrupted" in lines[-1]
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


@contextlib.contextmanager
def opened(browser, url):
    """Open the page; at the end there must be no error, and nothing asked of another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)  # of a busy machine
    errors, asked = watch(page), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("#reconstruct-start, #sample-start", state="attached")
    yield page
    # Gradio ends the stream of a queue that has nothing to say by itself.
    assert not [e for e in errors if not re.search(r"queue/data.*ERR_ABORTED", e)], errors
    assert not [each for each in asked if not each.startswith((url, "data:", "blob:"))]
    page.close()


def upload(page, path):
    """Give a file to the page, and wait until it is there."""
    page.set_input_files("#reconstruct-file input", path)
    # While the file is sent its name is shown in another way, which is gone at once.
    page.get_by_label(path.name, exact=True).wait_for()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def without_a_prompt(page):
    page.click("#sample-start")
    page.wait_for_selector("#sample-status [role=alert]")
    assert "Write a prompt first." in page.inner_text("#sample-status")
    page.wait_for_selector("#sample-start:not([disabled])")


def test_a_prompt_becomes_a_video_that_is_there_after_a_restart(tiny_runs, tmp_path):
    made = tmp_path / "made"
    flags = [f"--model={tiny_runs / 'vdit'}", f"--gallery={made}"]
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", noise, 8)
    (tmp_path / "notes.mp4").write_text("this is no video")
    with chromium() as browser:
        with served(*flags, "--queue_size=1") as url, opened(browser, url) as page:
            without_a_prompt(page)
            with opened(browser, url) as other:  # who is refused holds no place in the queue
                without_a_prompt(other)
            page.fill("#sample-prompt textarea", "a red circle & a <b>square</b>")
            page.fill("#sample-seed input", "7")
            page.click("#sample-start")
            page.wait_for_selector("#sample-video video")
            page.wait_for_function(PLAYS)
            assert "a red circle & a <b>square</b>" in page.inner_text("table.demo-table")
            wait_for(lambda: page.locator("#sample-gallery img").count() == 1)

            page.get_by_role("tab", name="Reconstruct").click()
            upload(page, tmp_path / "notes.mp4")
            page.click("#reconstruct-start")
            alert = page.wait_for_selector("#reconstruct-status [role=alert]")
            assert alert.inner_text().startswith("cannot read notes.mp4: ")
            page.get_by_label("Clear").first.click()
            upload(page, tmp_path / "clip.mp4")
            page.click("#reconstruct-start")
            page.wait_for_selector("#reconstruct-video video")
            assert "PSNR" in page.inner_text("#reconstruct-figures")

            page.get_by_role("tab", name="Latent").click()
            page.get_by_text("Latents of the reconstruction of clip.mp4.").wait_for()
            before = page.get_attribute("#latent-picture img", "src")
            page.fill("#latent-place input[type=number]", "2")
            page.get_by_text("decodes to frames 5 to 8.").wait_for()
            wait_for(lambda: page.get_attribute("#latent-picture img", "src") != before)
            page.set_viewport_size({"width": 390, "height": 844})
            assert overflow(page) == []
        assert len(list(made.glob("*.mp4"))) == 1

        with served(*flags, stop=signal.SIGTERM) as url, opened(browser, url) as page:
            page.wait_for_selector("#sample-gallery img")
            page.click("#sample-gallery button.thumbnail-item")
            page.wait_for_selector("#sample-video video")
            page.wait_for_function(PLAYS)
            assert page.input_value("#sample-prompt textarea") == "a red circle & a <b>square</b>"
            assert page.input_value("#sample-seed input") == "7"
            assert overflow(page) == []


def test_an_embedder_alone_has_no_prompt(tiny_runs, tmp_path):
    with (
        chromium() as browser,
        served(f"--model={tiny_runs / 'vidvae'}") as url,
        opened(browser, url) as page,
    ):
        tabs = page.get_by_role("tab").all_inner_texts()
        assert tabs == ["Reconstruct", "Latent"]
