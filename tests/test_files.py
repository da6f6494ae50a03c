"""Files that are whole or missing, and settings that must be the same."""

import errno
import fcntl
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from xgen_jax import files
from xgen_jax.errors import UserError


def test_a_file_that_cannot_be_read_is_not_called_one_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(UserError, match=r"gone: No such file or directory; \S*a.txt is not written"),
        files.atomic_write(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_bytes((tmp_path / "gone").read_bytes())
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_makes_folders_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with files.atomic_write(path, durable=True) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".txt" and not path.exists()
    assert path.read_text() == "one" and os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), files.atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise error
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_an_error_of_the_system_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a.txt cannot be written \(File exists\)"):
        files.write_text(tmp_path / "file" / "a.txt", "")


def test_only_leftovers_of_killed_writers_are_removed(tmp_path):
    for name in (".a.0123abcd.tmp.txt", ".a.txt.0123abcd.tmp", ".b.0123abcd.tmp.txt", "a.txt"):
        (tmp_path / name).write_text("")
    files.remove_temporaries(tmp_path, {"a"})
    assert sorted(os.listdir(tmp_path)) == [".b.0123abcd.tmp.txt", "a.txt"]


def test_objects_are_read_as_they_were_written(tmp_path):
    value = {"b": [1, 2.5], "a": {"ü": None}}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert list(files.read_json(tmp_path / "a.json")) == ["b", "a"]


@pytest.mark.parametrize(
    "text,message", [("{", r"is not JSON .*; fetch it"), ("[1]", "holds a list, not a JSON object")]
)
def test_what_is_no_object_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        files.read_json(tmp_path / "a.json", "fetch it")
    with pytest.raises(UserError, match="there is no file"):
        files.read_json(tmp_path / "b.json")


def test_differences_are_listed_with_what_to_do():
    differing = files.differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5})
    assert differing == ["b: 2 -> 4", "c: 3 -> None", "d: None -> 5"]
    files.refuse_differences([], "", "")
    with pytest.raises(UserError, match=r"^x is another \(there -> here\):\n  b: 2 -> 4\nleave$"):
        files.refuse_differences(differing[:1], "x is another", "leave")


def test_a_folder_is_free_or_holds_the_marker(tmp_path):
    assert not files.check_free(tmp_path / "new", "settings.json", "latents")
    assert not files.check_free(tmp_path, "settings.json", "latents")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no latents"):
        files.check_free(tmp_path, "settings.json", "latents")
    with pytest.raises(UserError, match="is a file; give a folder for latents"):
        files.check_free(tmp_path / "thesis.txt", "settings.json", "latents")
    (tmp_path / "settings.json").write_text("{}")
    assert files.check_free(tmp_path, "settings.json", "latents")


def test_numbers_are_read_only_as_they_were_written(tmp_path):
    numbers = np.array([1, 3, 2**40])
    files.write_numbers(tmp_path / "a.npy", numbers)
    digest = files.numbers_sha256(numbers)
    np.testing.assert_array_equal(files.read_numbers(tmp_path / "a.npy", 3, digest), numbers)
    for count, sha256 in ((2, digest), (3, "0" * 64)):
        with pytest.raises(UserError, match="is not what was written"):
            files.read_numbers(tmp_path / "a.npy", count, sha256)


def test_a_folder_is_held_by_one_process_and_taken_over_from_a_dead_one(tmp_path):
    script = (
        "import sys, time; from xgen_jax.files import locked\n"
        "with locked(sys.argv[1], 'trains in'): print('held', flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        message = rf"another process trains in .* \(process {holder.pid} on .*\); wait for it"
        with pytest.raises(UserError, match=message), files.locked(tmp_path, "trains in"):
            pass
        holder.kill()
    assert (tmp_path / files.LOCK).exists()
    with files.locked(tmp_path, "trains in"):
        assert f"process {os.getpid()}" in (tmp_path / files.LOCK).read_text()
    assert not (tmp_path / files.LOCK).exists()


def test_without_locks_of_the_system_a_process_that_lives_holds_the_folder(
    tmp_path, monkeypatch, capsys
):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock, here = tmp_path / files.LOCK, platform.node()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for text in (f"process {ended.pid} on {here}", "", "process 1 on another.machine"):
        lock.write_text(text)
        with files.locked(tmp_path, "trains in"):
            pass
        assert not lock.exists()
    assert "names process 1 on another.machine" in capsys.readouterr().err
    lock.write_text(f"process {os.getppid()} on {here}")
    with pytest.raises(UserError, match="another process"), files.locked(tmp_path, "trains in"):
        pass
