"""FVD: streaming statistics against NumPy's, preprocessing against torch's, and the figure."""

import pathlib

import numpy as np
import pytest
import tiny_i3d

from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from xgen_jax.evaluation.fvd import FrechetVideoDistance, i3d_features, preprocess, resize_matrix
from xgen_jax.weights.i3d import load_i3d

FRECHET = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "frechet.npz")
GOLDEN = tiny_i3d.GOLDEN


def streamed(x, *cuts):
    statistics = FeatureStatistics(x.shape[1])
    for batch in np.split(x, cuts):
        statistics.update(batch)
    return statistics


def test_statistics_in_batches_are_numpys():
    # Far from zero, where sums of squares would have lost all digits of the deviations.
    x = np.random.default_rng(0).normal(1e6, 1e-2, (90, 12))
    statistics = streamed(x, 1, 2, 40, 40)
    assert statistics.count == 90
    np.testing.assert_allclose(statistics.mean_D, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance(), np.cov(x, rowvar=False), atol=1e-11)
    merged = streamed(x[:30])
    merged.add_packed(FeatureStatistics(12).packed())
    merged.add_packed(streamed(x[30:]).packed())
    np.testing.assert_allclose(merged.covariance(), np.cov(x, rowvar=False), atol=1e-11)
    np.testing.assert_allclose(merged.mean_D, x.mean(0), rtol=1e-14)


@pytest.mark.parametrize(
    "name, tolerance",
    [("full", {"rtol": 1e-8}), ("tiny", {"rtol": 1e-8}), ("rankdef", {"rtol": 1e-5})]
    + [("equal", {"rtol": 0, "atol": 1e-6})],  # the root of rounding: no zero variance is exact
)
def test_distances_of_statistics_agree_with_the_reference(name, tolerance):
    x, y = FRECHET[f"in/{name}/x"], FRECHET[f"in/{name}/y"]
    distance = streamed(x, 7).distance(streamed(y, 3, 11))
    np.testing.assert_allclose(distance, FRECHET[f"out/{name}/fd_eigh"], **tolerance)


@pytest.mark.parametrize("name", ["wide", "tall", "square", "large"])
def test_preprocessing_is_torchs(name):
    if name == "large":
        y, x, channel = np.ogrid[:240, :427, :3]
        clip = (127.5 + 127.5 * np.sin(y / 9 + x / 7 + channel)).astype(np.uint8)[None]
    else:
        clip = GOLDEN[f"in/{name}"]
    rows, columns = (resize_matrix(size, *clip.shape[1:3]) for size in clip.shape[1:3])
    got = np.asarray(preprocess(clip[None], rows, columns))[0]
    assert got.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(got[:, ::9, ::9], GOLDEN[f"out/{name}"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return tiny_i3d.converted(tmp_path_factory.mktemp("weights") / "i3d")


def clips(count, frames=10, side=16, seed=5):
    source = SyntheticSource(seed=seed, split="held_out", num_clips=count)
    return np.stack([source.read(n, None, frames, side, side)["video"] for n in range(count)])


def test_the_figure_is_that_of_all_features_at_once(i3d):
    real, generated = clips(3), clips(2, seed=6)
    fvd = FrechetVideoDistance(i3d)
    fvd.update(real=real[:1], generated=generated[0])
    fvd.update(real=real[1:])
    fvd.update(generated=generated[1:])
    result = fvd.result()
    net = load_i3d(i3d)
    features = [i3d_features(net.model, net.params, videos) for videos in (real, generated)]
    np.testing.assert_allclose(result["fvd"], frechet_distance(*features), rtol=1e-6)
    assert result["fvd"] > 1e-3
    assert (result["clips_real"], result["clips_generated"], result["frames"]) == (3, 2, 10)
    assert result["size_real"] == ["16x16"] and result["preprocessing"] == "stylegan-v"
    assert result["weights"]["source"] == "i3d.safetensors"
    assert "2 clips for 24 features" in result["notes"][0]
    assert "not compared with the torch module" in result["notes"][1]


def test_clips_that_cannot_be_compared_are_refused(i3d):
    fvd = FrechetVideoDistance(i3d)
    with pytest.raises(UserError, match="10 frames or more.*this real one has 9"):
        fvd.update(real=np.zeros((9, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="a generated clip must be a uint8 array"):
        fvd.update(generated=np.zeros((10, 16, 16, 3), np.float32))
    with pytest.raises(UserError, match="2 clips or more of each set.*0 real and 0 generated"):
        fvd.result()
    fvd.update(real=clips(2), generated=clips(1))
    with pytest.raises(UserError, match="2 real and 1 generated"):
        fvd.result()
    with pytest.raises(UserError, match="one length: this generated one has 12 frames.*it 10"):
        fvd.update(generated=np.zeros((12, 16, 16, 3), np.uint8))


def test_without_weights_there_is_no_figure(tmp_path):
    with pytest.raises(
        UserError, match="without one no FVD.*--kind=i3d --source=i3d_torchscript.pt"
    ):
        FrechetVideoDistance(tmp_path)
