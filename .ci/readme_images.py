"""Make the two pictures on top of README.md from the folder of a quickstart.

    python .ci/readme_images.py runs/quickstart

docs/images/samples.gif: samples of the first eight held-out prompts, enlarged four times.
docs/images/page.png: the top of the quickstart's page as a browser shows it; needs Chromium.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
IMAGES = ROOT / "docs" / "images"
COLUMNS, ROWS, SCALE, GAP = 4, 2, 4, 10
CAPTION_LINES, LINE = 3, 14
BACKGROUND, INK = (255, 255, 255), (32, 32, 32)
PAGE_WIDTH, PAGE_HEIGHT = 1280, 1000


def samples_gif(captions: pathlib.Path, out: pathlib.Path) -> None:
    """Write a grid of samples with their prompts below.

    Args:
      captions: folder that `evaluate --suite=captions` wrote.
      out: the GIF.
    """
    from xgen_jax import read_video

    samples = json.loads((captions / "captions.json").read_text())["samples"][: COLUMNS * ROWS]
    read = [read_video(captions / sample["file"]) for sample in samples]
    videos, fps = [video for video, _ in read], read[0][1]
    frames, height, width = videos[0].shape[:3]
    cell = width * SCALE + GAP, height * SCALE + GAP + CAPTION_LINES * LINE
    size = COLUMNS * cell[0] + GAP, ROWS * cell[1] + GAP
    font = ImageFont.load_default(size=11)
    pictures = []
    for frame in range(frames):
        picture = Image.new("RGB", size, BACKGROUND)
        draw = ImageDraw.Draw(picture)
        for index, (sample, video) in enumerate(zip(samples, videos)):
            x = GAP + index % COLUMNS * cell[0]
            y = GAP + index // COLUMNS * cell[1]
            pixels = np.repeat(np.repeat(video[frame], SCALE, 0), SCALE, 1)
            picture.paste(Image.fromarray(pixels), (x, y))
            text = "\n".join(textwrap.wrap(sample["prompt"], 24)[:CAPTION_LINES])
            draw.multiline_text((x, y + height * SCALE + 3), text, INK, font, spacing=1)
        pictures.append(picture.quantize(128, dither=Image.Dither.NONE))
    out.parent.mkdir(exist_ok=True)
    later = {"append_images": pictures[1:], "duration": round(1000 / fps), "loop": 0}
    pictures[0].save(out, save_all=True, optimize=True, **later)


def page_png(page: pathlib.Path, out: pathlib.Path) -> None:
    """Write a picture of the top of a page.

    Args:
      page: an HTML file.
      out: the PNG, of 256 colours, so that it is small.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("error: no Chromium on PATH; docs/images/page.png stays as it was")
    with tempfile.TemporaryDirectory() as folder:
        shot = pathlib.Path(folder) / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={PAGE_WIDTH},{PAGE_HEIGHT}", f"--screenshot={shot}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True)
        picture = Image.open(shot).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    run = pathlib.Path(sys.argv[1])
    samples_gif(run / "evaluation" / "captions", IMAGES / "samples.gif")
    page_png(run / "report.html", IMAGES / "page.png")
    for name in ("samples.gif", "page.png"):
        print(f"docs/images/{name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")
