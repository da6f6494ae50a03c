"""A run on a T5's stored embeddings, from encoding to sampling; another T5 is refused."""

import shutil

import jax
import numpy as np
import pytest
import tiny_t5

from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.sample import SampleRequest, sample_files
from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.errors import UserError
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.runs.text_encoders import T5Captions
from xgen_jax.testing import DATA, VDIT, task_of
from xgen_jax.weights.t5 import T5Folder

pytestmark = pytest.mark.slow

LENGTH = 24
PROMPT = "a red circle moving left"


def config(root, runs, **changes):
    values = {
        **VDIT,
        "embedder": str(runs / "vidvae"),
        "model": {**VDIT["model"], "null_caption_tokens": LENGTH},
        "text": {"kind": "t5", "path": str(root / "t5"), "length": LENGTH},
        "loss": {"cond_drop_prob": 0.5},
        "data": {**DATA, "source": {"kind": "latents", "path": str(root / "latents")}},
        "loop": {**VDIT["loop"], "steps": 1},
    }
    return run_config(
        {
            key: {**value, **changes.get(key, {})} if key in changes else value
            for key, value in values.items()
        }
    )


def encode(root, runs, **changes):
    arguments = {
        "data": "synthetic",
        "count": 6,
        "batch_size": 3,
        "text_encoder": str(root / "t5"),
        "dtype": "bfloat16",
    }
    arguments |= {
        "embedder": str(runs / "vidvae"),
        "out": str(root / "latents"),
        "text_length": LENGTH,
        **changes,
    }
    return encode_dataset(EncodeRequest(**arguments))


@pytest.fixture(scope="module")
def root(tiny_runs, tmp_path_factory):
    """A folder with t5/, its embeddings in latents/, and run/ trained on them for a step.

    Tests must not change it.
    """
    root = tmp_path_factory.mktemp("t5run")
    tiny_t5.write(root / "t5")
    encode(root, tiny_runs)
    train(config(root, tiny_runs), root / "run")
    return root


def test_stored_embeddings_are_those_of_the_t5(root):
    source, captions = LatentSource(root / "latents"), T5Captions(root / "t5", LENGTH)
    assert source.made_by["text_encoder"] == captions.fingerprint
    for index in range(6):
        clip = source.read(index, None, 5, 16, 16)
        (row,) = captions([clip["caption"]])
        assert len(clip["text"]) == len(row) <= LENGTH
        np.testing.assert_allclose(clip["text"].astype(np.float32), row, rtol=2**-8, atol=1e-6)


def test_the_run_keeps_both_fingerprints(root, tiny_runs):
    saved = Checkpoints(root / "run" / "checkpoints").restore_data()["fingerprints"]
    assert saved["text_encoder"] == T5Folder(root / "t5").fingerprint
    assert saved.keys() == {"embedder", "text_encoder"}
    assert task_of(config(root, tiny_runs)).fingerprints() == saved


def test_a_dropped_stored_caption_is_the_null_caption_of_the_run(root, tiny_runs):
    objective = task_of(config(root, tiny_runs))
    source = LatentSource(root / "latents")
    clips = [source.read(index, None, 5, 16, 16) for index in range(2)]
    text = objective.text.batch_arrays({"text": [clip["text"] for clip in clips]})
    params = Checkpoints(root / "run" / "checkpoints").restore_part(("params",))
    dropped, mask = jax.jit(objective.text.embed)(params, text, np.array([True, False]))
    np.testing.assert_array_equal(dropped[0], params["vdit"]["constants"]["null_caption"])
    assert mask[0].all() and mask[1].sum() == len(clips[1]["text"])


def test_training_needs_no_t5_and_sampling_needs_its_weights_once(root, tiny_runs, tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(root / "latents", other / "latents")
    objective = task_of(config(other, tiny_runs))  # there is no t5/ next to these latents
    assert objective.fingerprints()["text_encoder"] == T5Folder(root / "t5").fingerprint
    loaded = load_text_to_video(root / "run", text_cache=str(tmp_path / "cache"))
    video = loaded(PROMPT, seed=1)
    assert video.shape == (5, 16, 16, 3)
    # Only the weights are missing: the cache gives the same video, another prompt is refused.
    encoder = loaded.networks.text.encoder
    encoder.release()
    encoder.folder.load = lambda **_: pytest.fail("the weights are read")
    np.testing.assert_array_equal(loaded(PROMPT, seed=1), video)
    with pytest.raises(
        UserError, match=r"nothing is left of the prompt 'www\.a\.b' when it is cleaned"
    ):
        loaded("www.a.b")


def test_a_file_of_prompts_loads_the_t5_once(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XGEN_JAX_CACHE", str(tmp_path / "cache"))
    loads, load = [], T5Folder.load
    monkeypatch.setattr(
        T5Folder, "load", lambda self, *a, **k: loads.append(self.path) or load(self, *a, **k)
    )
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue square moving up {'and up ' * 8}\n")

    def sample(name):
        request = SampleRequest(
            model=str(root / "run"),
            prompts_file=str(tmp_path / "prompts.txt"),
            out=str(tmp_path / name),
        )
        return sample_files(request)

    assert sample("out")["generated"] == 2
    assert len(loads) == 1
    printed = capsys.readouterr().err
    assert printed.count("are cut off: the model takes 24") == 1
    (tmp_path / "out" / "00002.mp4").unlink()
    assert sample("out")["generated"] == 1
    assert len(loads) == 1
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\nwww.a.b\n")
    with pytest.raises(UserError, match="nothing is left of the prompt"):
        sample("more")
    assert not (tmp_path / "more").exists()


def test_another_t5_is_refused(root, tiny_runs, tmp_path):
    tiny_t5.write(tmp_path / "t5", seed=1)
    fingerprints = T5Folder(root / "t5").fingerprint, T5Folder(tmp_path / "t5").fingerprint
    with pytest.raises(
        UserError,
        match="was trained on the text_encoder {}, and what is loaded now is {}".format(
            *fingerprints
        ),
    ):
        load_text_to_video(
            root / "run", text_encoder=str(tmp_path / "t5"), text_cache=str(tmp_path / "cache")
        )
    with pytest.raises(
        UserError,
        match="embeddings of the text encoder {}, and .* is {}: encode again".format(*fingerprints),
    ):
        train(config(root, tiny_runs, text={"path": str(tmp_path / "t5")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The run is continued with that T5's embeddings of the same clips.
    encode(tmp_path, tiny_runs)
    with pytest.raises(UserError, match="the source .* differ|was trained on the text_encoder"):
        train(config(tmp_path, tiny_runs, loop={"steps": 2}), root / "run")
    with pytest.raises(UserError, match="encoded otherwise.*\n  text_encoder: "):
        encode(root, tiny_runs, text_encoder=str(tmp_path / "t5"))


def test_embeddings_that_do_not_fit_are_refused(root, tiny_runs, tmp_path):
    encode(tmp_path, tiny_runs, text_encoder=None, text_length=None)
    with pytest.raises(
        UserError, match=r"holds no text embeddings, .*--text_encoder=.*t5 --text_length=24"
    ):
        task_of(config(tmp_path, tiny_runs, text={"path": str(root / "t5")}))
    shorter = {"text": {"length": 20}, "model": {"null_caption_tokens": 20}}
    with pytest.raises(
        UserError, match="embeddings of up to 24 tokens of width 16; the run takes text.length 20"
    ):
        task_of(config(root, tiny_runs, **shorter))
    with pytest.raises(UserError, match="text_length is for a T5's folder; a run has its own"):
        encode(tmp_path, tiny_runs, out=str(tmp_path / "x"), text_encoder=str(tiny_runs / "vdit"))
    with pytest.raises(UserError, match="is for --text_encoder"):
        encode(tmp_path, tiny_runs, out=str(tmp_path / "x"), text_encoder=None)
    assert not (tmp_path / "x").exists()


def test_captions_of_videos_are_embedded_by_an_available_t5(root, tiny_runs):
    data = {"source": {"kind": "synthetic", "num_clips": 8}}
    objective = task_of(config(root, tiny_runs, data=data))
    arrays = objective.text.batch_arrays({"caption": [PROMPT, ""]})
    assert arrays["text"].shape == (2, LENGTH, 16) and arrays["text_mask"][1].sum() == 0
    (row,) = T5Captions(root / "t5", LENGTH)([PROMPT])
    np.testing.assert_allclose(arrays["text"][0, : len(row)], row, atol=1e-6)
    assert task_of(config(root, tiny_runs)).fingerprints() == objective.fingerprints()
