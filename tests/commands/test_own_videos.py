"""From a folder of one's own videos to held-out scores, samples and a page."""

import json

import numpy as np
import pytest

from xgen_jax import evaluate
from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.train import train
from xgen_jax.data.sources import video_folder
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.files import locked
from xgen_jax.testing import BUCKET, DATA, POINTWISE, VDIT, VIDVAE, tiny_run
from xgen_jax.training.metric_writers import read_jsonl

FRACTION = 0.4
LOOP = {"steps": 2, "evaluate_every": 1, "evaluate_batches": 1}


def own_data(path, **source):
    return {
        "source": {"kind": "video_folder", "path": str(path), **source},
        "buckets": [BUCKET],
    }


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve videos with a caption each in a text file."""
    folder = tmp_path_factory.mktemp("own") / "videos"
    rng = np.random.default_rng(0)
    for number in range(12):
        write_video(folder / f"{number}.mp4", rng.integers(0, 256, (6, 16, 16, 3), np.uint8))
        (folder / f"{number}.txt").write_text(f"noise number {number}")
    return folder


@pytest.fixture(scope="module")
def held_out(videos):
    """The files that are held out of them."""
    source = VideoFolderSource(videos, split="held_out", held_out_fraction=FRACTION)
    assert 2 <= len(source) <= 10
    return set(source.files)


@pytest.fixture(scope="module")
def runs(videos, tmp_path_factory):
    """A folder with vidvae/, trained and evaluated on the videos."""
    root = tmp_path_factory.mktemp("runs")
    data = own_data(videos, held_out_fraction=FRACTION)
    train(tiny_run({**VIDVAE, "data": data}, model=POINTWISE, loop=LOOP), root / "vidvae")
    return root


def test_the_loop_scores_clips_that_training_does_not_see(runs):
    rows = read_jsonl(runs / "vidvae" / "metrics.jsonl")
    assert [np.isfinite(row["held_out_psnr_db"]) for row in rows] == [True, True]


def test_scores_are_those_of_held_out_clips(runs, videos, held_out, tmp_path):
    embedder = str(runs / "vidvae")

    def scored(**options):
        evaluate("reconstruction", embedder=embedder, out=str(tmp_path), count=20, **options)
        found = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
        names = {row["name"].split(":")[0] for row in found["shapes"][0]["videos"]}
        return found["split"], names

    everything = {f"{number}.mp4" for number in range(12)}
    assert scored() == ("held_out", held_out)
    assert scored(split="train") == ("train", everything - held_out)
    assert scored(data=str(videos)) == ("all", everything)
    assert scored(data=str(videos), split="held_out") == ("held_out", held_out)


def test_a_split_of_shapes_is_refused(tiny_runs, tmp_path):
    with pytest.raises(UserError, match="--split=train is for folders.*--data=FOLDER"):
        evaluate(
            "reconstruction", embedder=str(tiny_runs / "vidvae"), out=str(tmp_path), split="train"
        )
    with pytest.raises(UserError, match="split='test' is not known"):
        evaluate("reconstruction", embedder="x", out=str(tmp_path), split="test")


def test_evaluation_needs_clips_to_hold_out(videos, tmp_path):
    for fraction, message in ((0.0, "held_out_fraction=0.05"), (0.001, "none of the 12 files")):
        data = own_data(videos, held_out_fraction=fraction)
        with pytest.raises(UserError, match=message):
            train(tiny_run({**VIDVAE, "data": data}, loop=LOOP), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_latents_hold_out_what_their_videos_did(runs, videos, held_out, tmp_path):
    request = {"embedder": str(runs / "vidvae"), "data": str(videos), "out": str(tmp_path / "l")}
    encode_dataset(EncodeRequest(**request, held_out_fraction=FRACTION, batch_size=4))
    sizes = {split: LatentSource(tmp_path / "l", split) for split in ("train", "held_out", "all")}
    (bucket,) = tiny_run(VIDVAE).data.buckets
    clips = {split: source.clips_for(bucket) for split, source in sizes.items()}
    names = VideoFolderSource(videos).files
    assert {names[clip] for clip in clips["held_out"]} == held_out
    assert sorted([*clips["train"], *clips["held_out"]]) == list(range(12))
    assert clips["all"] is None
    encode_dataset(EncodeRequest(**{**request, "out": str(tmp_path / "none")}, held_out_fraction=0))
    with pytest.raises(UserError, match="holds no held-out clips; encode the videos again"):
        LatentSource(tmp_path / "none", "held_out")


@pytest.mark.slow
def test_own_videos_become_a_page(runs, videos, tmp_path):
    latents, root = tmp_path / "latents", tmp_path / "mine"
    (root / "vidvae").parent.mkdir()
    (root / "vidvae").symlink_to(runs / "vidvae")
    request = {"embedder": str(root / "vidvae"), "data": str(videos), "out": str(latents)}
    encode_dataset(EncodeRequest(**request, held_out_fraction=FRACTION, batch_size=4))
    data = {"source": {"kind": "latents", "path": str(latents)}, "buckets": [BUCKET]}
    run = tiny_run({**VDIT, "data": {**DATA, **data}}, embedder=str(root / "vidvae"), loop=LOOP)
    train(run, root / "vdit")
    last = read_jsonl(root / "vdit" / "metrics.jsonl")[-1]
    assert np.isfinite(last["held_out_loss"])
    (tmp_path / "prompts.txt").write_text("noise\nmore noise\n")
    scores = {"out": str(root / "evaluation")}
    with pytest.raises(UserError, match="verifies captions of moving shapes.*--suite=samples"):
        evaluate("captions", model=str(root / "vdit"), **scores)
    evaluate("reconstruction", embedder=str(root / "vidvae"), **scores)
    result = evaluate(
        "samples", model=str(root / "vdit"), prompts_file=str(tmp_path / "prompts.txt"), **scores
    )
    assert result["prompts"] == 2
    page = evaluate("report", out=str(root))["report"]
    with open(page) as file:
        text = file.read()
    assert "Scored on clips that were held out" in text and "more noise" in text
    assert "Accuracy by attribute" not in text and "quickstart.sh" not in text
    assert "train the text-to-video transformer" in text and "No times" not in text


def test_clips_that_were_replaced_are_named(videos, tmp_path, monkeypatch, capsys):
    read = video_folder.read_video

    def broken(path, **options):
        if path.name == "3.mp4":
            raise UserError(f"cannot read {path}: damaged")
        return read(path, **options)

    monkeypatch.setattr(video_folder, "read_video", broken)
    data = own_data(videos, held_out_fraction=0.0)
    config = tiny_run({**VIDVAE, "data": data}, model=POINTWISE, loop={"steps": 8})
    train(config, tmp_path / "run")
    line = "1 x unreadable when decoded, replaced by the next: cannot read"
    assert line in capsys.readouterr().err
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    (left_out,) = written["summary"]["left_out"]
    assert line in left_out and "3.mp4: damaged" in left_out
    # Without held-out clips the scores say that they are of those trained on.
    out = {"out": str(tmp_path), "count": 2}
    evaluate("reconstruction", embedder=str(tmp_path / "run"), **out)
    scores = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
    assert scores["split"] == "train"


def test_a_folder_that_is_trained_in_is_refused(tmp_path):
    with locked(tmp_path / "run", "trains in"):
        with pytest.raises(UserError, match="another process trains in .*run"):
            train(tiny_run(VIDVAE), tmp_path / "run")
        assert not (tmp_path / "run" / "config.json").exists()


def test_samples_have_the_rate_of_the_clips():
    mixed = {24.0: 3, 30.0: 1}
    config, said = tiny_run(VDIT, embedder="x"), []
    assert config.fps == 8.0 and config.for_clips({}, said.append).fps == 8.0
    assert config.for_clips({24.0: 5}, said.append).fps == 24.0 and said == []
    assert config.for_clips(mixed, said.append).fps == 24.0
    assert "3 of 24, 1 of 30; samples will have 24" in said[0]
    given = tiny_run({**VDIT, "sample_fps": 6.0}, embedder="x")
    assert given.for_clips(mixed, said.append).fps == 6.0 and len(said) == 1


def test_a_folder_knows_its_rates(tmp_path):
    for name, fps in (("a.mp4", 24), ("b.mp4", 24), ("c.mp4", 30000 / 1001)):
        write_video(tmp_path / name, np.zeros((3, 16, 16, 3), np.uint8), fps=fps)
    options = {"require_captions": False}
    assert VideoFolderSource(tmp_path, **options).rates() == {24.0: 2, 29.97: 1}
    assert VideoFolderSource(tmp_path, fps=12, stride=2, **options).rates() == {6.0: 3}
