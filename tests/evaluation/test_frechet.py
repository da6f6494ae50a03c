"""The Frechet distance against SciPy's, and the sensitivity of random features of clips."""

import pathlib

import numpy as np
import pytest

from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.evaluation.frechet import FEATURES, frechet_distance, random_features

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "frechet.npz")
# The tolerances are those that the goldens name for float64.
TOLERANCES = {
    "full": {"rtol": 1e-8},
    "tiny": {"rtol": 1e-8},
    "equal": {"rtol": 0, "atol": 1e-9},
    "rankdef": {"rtol": 1e-5},
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_distances_agree_with_the_reference(name):
    distance = frechet_distance(GOLDENS[f"in/{name}/x"], GOLDENS[f"in/{name}/y"])
    np.testing.assert_allclose(distance, GOLDENS[f"out/{name}/fd_eigh"], **TOLERANCES[name])


def test_of_gaussians_along_the_axes_it_is_what_the_formula_says():
    """Means 3 apart, standard deviations 1 and 4 along one axis, 2 and 2 along the other: 9 + (4 -
    1)^2."""
    # Unbiased variance 1, no covariance.
    unit = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]) * np.sqrt(3 / 4)
    x, y = unit * [1, 2], unit * [4, 2] + [0, 3]
    np.testing.assert_allclose(frechet_distance(x, y), 9 + 9, rtol=1e-12)
    np.testing.assert_allclose(frechet_distance(y, x), 9 + 9, rtol=1e-12)


def clips(count=24, **change):
    source = SyntheticSource(seed=5, split="held_out", num_clips=count)
    return [source.read(index, None, 5, 32, 32)["video"] for index in range(count)]


def test_features_belong_to_the_clip_alone_and_stay_what_they_are():
    videos = clips(3)
    features = random_features(videos)
    assert features.shape == (3, FEATURES)
    np.testing.assert_array_equal(random_features(videos[1:2]), features[1:2])
    # Written down once: another seed, another filter or another order would give others.
    known = [-0.1346004456, 0.6003781557, 0.1733686924, 0.4891917109]
    np.testing.assert_allclose(features[0, [0, 31, 32, 63]], known, rtol=1e-4)


def test_what_is_worse_is_farther():
    videos = clips()
    real = random_features(videos)

    def distance(change):
        return frechet_distance(real, random_features([change(video) for video in videos]))

    def blurred(width):
        def blur(video):
            padded = np.pad(
                video.astype(np.float32), ((0, 0), (0, 0), (width, width), (0, 0)), mode="edge"
            )
            shifts = [padded[:, :, i : i + video.shape[2]] for i in range(2 * width + 1)]
            return np.rint(np.mean(shifts, axis=0)).astype(np.uint8)

        return blur

    def noisy(level):
        def noise(video):
            added = np.random.default_rng(0).normal(0, level, video.shape)
            return np.clip(np.rint(video + added), 0, 255).astype(np.uint8)

        return noise

    same = distance(lambda video: video)
    assert abs(same) < 1e-9
    assert 1e-6 < distance(blurred(1)) < distance(blurred(2)) < distance(blurred(4))
    assert 1e-6 < distance(noisy(5)) < distance(noisy(20))
    # Frozen, though each frame is natural.
    assert distance(lambda video: video[[0, 0, 0, 0, 0]]) > 1e-6


@pytest.mark.parametrize(
    "x, y, message",
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), r"2 samples or more, not \(1, 3\)"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 and 2 features"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(x, y, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(x, y)


def test_a_clip_that_is_none_is_refused():
    with pytest.raises(UserError, match="float32"):
        random_features([np.zeros((5, 8, 8, 3), np.float32)])
