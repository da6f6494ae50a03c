"""Old names of flags of launch/sample.py."""

import pytest
from test_commands import call


@pytest.mark.slow
def test_a_renamed_flag_works_and_prints_its_new_name(tmp_path):
    flags = ("--model=nowhere", "--prompt=x", "--out=x.mp4", "--piece_frames=5")
    done = call("sample", *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "--piece_frames is called --segment_frames now" in done.stderr
    assert "there is no folder nowhere" in done.stderr


def test_every_flag_is_a_field_of_the_request(tmp_path):
    done = call("sample", "--model=nowhere", "--prompt=x", "--out=x.mp4", cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no folder nowhere" in done.stderr
    assert "is called" not in done.stderr
