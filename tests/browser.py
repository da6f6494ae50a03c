"""A headless Chromium that tests drive with playwright."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# As root in a container there is no sandbox; the rest keeps it from the network.
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextlib.contextmanager
def chromium() -> Iterator:
    """Yield a `playwright.sync_api.Browser`; skip the test where playwright or Chromium is missing.

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        errors = watch(page)
        page.goto(path.as_uri())
        assert not errors
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=ARGS)
        try:
            yield browser
        finally:
            browser.close()


def watch(page) -> list[str]:
    """Return a list that gets each error of a `playwright.sync_api.Page`: of its scripts, of its
    console (what a content security policy blocks, too), and requests that failed."""
    errors: list[str] = []

    def on_console(message) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"{request.url}: {request.failure}"))
    return errors


def overflow(page) -> list[str]:
    """Return what reaches beyond the right edge of a page: tags with their classes and widths.

    What scrolls within an element of its own does not count.
    """
    return page.evaluate(
        """() => {
          const edge = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= edge) return [];
          return [...document.querySelectorAll("body *")]
            .filter(x => x.getBoundingClientRect().right > edge + 0.5)
            .map(x => `${x.tagName} ${x.className} ${x.getBoundingClientRect().right}`)
            .concat(`the page is ${document.documentElement.scrollWidth} wide`);
        }"""
    )
