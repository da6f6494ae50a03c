"""Pages in a browser: nothing overflows, no error is logged, videos are enlarged and stepped."""

import io
import re

import pytest
from browser import chromium, overflow, watch
from experiment_folder import write_experiment
from PIL import Image
from test_curation_report import hostile_table, write

from xgen_jax.evaluation.comparison import write_comparison
from xgen_jax.evaluation.report import write_report

pytestmark = pytest.mark.slow
LOADED = """main => Promise.all([...main.querySelectorAll("video")].map(
  video => video.readyState > 1 || new Promise(done => video.addEventListener("loadeddata", done))
))"""
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    roots = [write_experiment(folder / name) for name in ("one", "two" * 40)]
    file = io.BytesIO()
    Image.new("RGB", (160, 90), "teal").save(file, "jpeg")
    write(folder / "curated", hostile_table(), thumbnails=lambda clip: [file.getvalue()] * 4)
    return {
        "report": write_report(roots[0]),
        "comparison": write_comparison(roots, folder / "comparison.html")[0],
        "curation": folder / "curated" / "page.html",
    }


def opened(browser, path, size, **context):
    page = browser.new_page(viewport=size, **context)
    errors = watch(page)
    page.goto(path.as_uri())
    return page, errors


@pytest.mark.parametrize("name", ["report", "comparison", "curation"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_overflows_and_no_error_is_logged(browser, pages, name, size):
    page, errors = opened(browser, pages[name], size)
    for part in page.locator("details").all():
        part.evaluate("part => { part.open = true; }")
    page.locator("main").evaluate(LOADED)
    assert overflow(page) == errors == []
    assert page.locator("h1").inner_text()
    page.close()


def test_a_click_enlarges_a_video_and_its_frames_are_stepped(browser, pages):
    page, errors = opened(browser, pages["report"], PHONE)
    small = page.locator("main video").first.bounding_box()
    page.locator("main video").nth(1).click()
    shown, times = page.locator(".viewer video"), "videos => videos.map(video => video.currentTime)"
    assert shown.count() == 2  # the truth and the sample, in step
    assert shown.first.bounding_box()["width"] > 1.3 * small["width"]
    said = page.locator(".viewer output")
    page.locator(".viewer input").fill("0")
    assert said.inner_text().startswith("frame 1 of 3 · 0.00 s")
    assert shown.evaluate_all(times) == pytest.approx([0.5 / 8] * 2)
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("frame 2 of 3 · 0.13 s")
    assert shown.evaluate_all(times) == pytest.approx([1.5 / 8] * 2)
    page.get_by_role("button", name="Frame before").click()
    page.keyboard.press("ArrowLeft")
    assert said.inner_text().startswith("frame 3 of 3")  # around the end
    page.get_by_role("button", name="Play").click()
    said.filter(has_text="frame 2").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator(".viewer").is_visible() and not overflow(page) and not errors
    page.close()


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_video_alone_fills_the_viewer(browser, pages, size):
    page, errors = opened(browser, pages["report"], size)
    page.locator(".wide-clips video").first.click()
    video = page.locator(".viewer video")
    assert video.count() == 1 and not errors
    box, whole = video.bounding_box(), page.locator(".viewer").bounding_box()
    assert box["width"] > 0.85 * whole["width"] or box["height"] > 0.6 * size["height"]
    assert box["width"] / box["height"] == pytest.approx(2, rel=0.1)  # as the video, or nearly
    page.close()


def test_pictures_of_a_curation_are_stepped_too(browser, pages):
    page, errors = opened(browser, pages["curation"], DESK)
    page.locator(".long .strip img").nth(1).press("Enter")
    assert page.locator(".viewer output").inner_text() == "frame 2 of 3"
    page.keyboard.press("ArrowRight")
    visible = page.locator(".stage img").evaluate_all("all => all.map(x => !x.hidden)")
    assert visible == [False, False, True] and not errors
    page.close()


def test_the_policy_lets_no_other_script_run(browser, pages):
    page, errors = opened(browser, pages["report"], DESK)
    page.evaluate(
        """() => {
          const other = document.createElement("script");
          other.textContent = "document.title = 'changed'";
          document.body.append(other);
        }"""
    )
    assert page.title() != "changed"
    assert len(errors) == 1 and "Content Security Policy" in errors[0]
    page.close()


def test_without_scripts_all_is_there_but_the_viewer(browser, pages):
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["report"].as_uri())
    assert page.locator("main video").first.is_visible()
    assert not page.locator("dialog, button").count()
    page.get_by_text("what it means").first.click()
    assert page.get_by_text("Distance of the pixels").first.is_visible()
    context.close()


def test_a_command_is_copied_or_selected(browser, pages):
    page, errors = opened(browser, pages["report"], DESK)
    block = page.locator(".command").first
    block.get_by_role("button", name="Copy").click()
    # The clipboard answers later; the word stays for a second and a half.
    block.get_by_role("button", name=re.compile("^(Copied|Selected)$")).wait_for()
    text = block.locator("code").text_content()
    assert text == "bash launch/quickstart.sh runs/one" and not errors
    page.close()
