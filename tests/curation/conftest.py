"""A small folder of videos, and its curation. Tests must not change them."""

import pytest
from small_curation import run, write_videos


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("curate") / "videos")


@pytest.fixture(scope="session")
def curated(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "out"
    return run(videos, out), out
