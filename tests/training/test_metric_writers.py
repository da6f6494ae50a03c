"""Metric writers: files after interruptions, and the progress that a person sees."""

import io
import json
import math
import os
import shutil

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.training import metric_writers as metrics


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def run(writer, clock, steps, step_s=0.5):
    for step in steps:
        clock.now_s += step_s
        writer.progress(step, {"loss": 1.0 / step})


def test_plain_lines_come_at_intervals_and_say_what_is_left():
    stream, clock = io.StringIO(), Clock()
    writer = metrics.ConsoleWriter(100, name="vdit", stream=stream, clock=clock)
    run(writer, clock, range(1, 41))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # the first step, then every five of the twenty seconds
    assert lines[1] == "vdit 11/100  loss 0.09091  2 steps/s  44 s left"
    writer.close()
    writer.close()
    assert stream.getvalue().splitlines()[4:] == ["vdit 40/100  loss 0.025  2 steps/s  in 20 s"]
    assert "\r" not in stream.getvalue()


def test_live_bar_stays_on_one_line_narrower_than_the_terminal(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((70, 24)))
    stream, clock = Terminal(), Clock()
    writer = metrics.ConsoleWriter(10, stream=stream, clock=clock)
    run(writer, clock, range(1, 11))
    printed = stream.getvalue()
    assert "\n" not in printed
    frames = printed.replace("\x1b[K", "").split("\r")[1:]
    assert len(frames) == 10 and max(map(len, frames)) < 70
    assert "─" in frames[0] and "─" not in frames[-1] and "━" in frames[-1]
    assert frames[4].endswith("5/10  loss 0.2  2 steps/s  2.5 s left")
    writer.close()
    assert stream.getvalue().endswith("\x1b[Ktrain 10/10  loss 0.1  2 steps/s  in 5.0 s\n")


def test_speed_forgets_the_compilation_of_the_first_step():
    clock = Clock()
    writer = metrics.ConsoleWriter(1000, stream=io.StringIO(), clock=clock)
    clock.now_s += 60
    run(writer, clock, range(1, 101))
    assert writer._speed() == pytest.approx(2.0)


def test_console_takes_the_callers_speed_and_a_resumed_start():
    stream, clock = io.StringIO(), Clock()
    writer = metrics.ConsoleWriter(100, first_step=90, stream=stream, clock=clock)
    clock.now_s += 1
    writer.write(91, {"loss": math.nan, "steps_per_s": 3.0})
    assert stream.getvalue() == "train 91/100  loss nan  3 steps/s  3.0 s left\n"
    writer = metrics.ConsoleWriter(100, first_step=90, stream=io.StringIO(), clock=clock)
    run(writer, clock, [91])
    assert writer._speed() == pytest.approx(2.0)


def test_console_shows_throughput_and_what_keeps_the_device_from_more():
    stream, clock = io.StringIO(), Clock()
    writer = metrics.ConsoleWriter(100, stream=stream, clock=clock)
    rates = {"steps_per_s": 2.0, "tokens_per_s": 12_345.0, "mfu": 0.4567, "input_wait": 0.034}
    writer.write(50, rates)
    line = "train 50/100  2 steps/s  12.3k tokens/s  MFU 45.7%  input wait 3%  25 s left\n"
    assert stream.getvalue() == line
    clock.now_s += 10
    writer.write(60, {"tokens_per_s": 999_600.0, "mfu": 0.4, "input_wait": 0.004})
    assert "  1M tokens/s  MFU 40%  20 s left" in stream.getvalue()


def test_narrow_terminal_and_a_run_without_steps(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 24)))
    stream = Terminal()
    writer = metrics.ConsoleWriter(10, stream=stream)
    writer.progress(0, {})
    assert len(stream.getvalue().strip("\r").removesuffix("\x1b[K")) < 20
    writer.close()


def test_jsonl_rows_come_back(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    writer = metrics.JsonlWriter(path)
    writer.write(1, {"loss": np.float32(0.5), "frames": np.int64(9), "time_s": 2})
    writer.write(2, {"loss": math.nan, "grad_norm": -math.inf, "time_s": 3.5})
    writer.progress(3, {"loss": 1.0})
    assert len(path.read_text().splitlines()) == 2  # flushed before close
    writer.close()
    writer.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    second = json.loads(path.read_text().splitlines()[1], parse_constant=refuse)
    assert second["loss"] is None and second["nonfinite"] == {"loss": "nan", "grad_norm": "-inf"}
    rows = metrics.read_jsonl(path)
    assert rows[0] == {"step": 1, "loss": 0.5, "frames": 9, "time_s": 2}
    assert (
        math.isnan(rows[1]["loss"])
        and rows[1]["grad_norm"] == -math.inf
        and "nonfinite" not in rows[1]
    )


@pytest.mark.parametrize("name", metrics.RESERVED)
def test_jsonl_refuses_its_own_names(tmp_path, name):
    writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=name):
        writer.write(1, {name: 1.0})
    writer.close()


@pytest.mark.parametrize(
    "torn", ["", '{"step": 6, "lo', '{"step": 6, "loss": 1', '{"step": 6, "lo\n', "\n", "6\n"]
)
def test_resuming_drops_later_steps_and_a_torn_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 6)) + torn)
    assert [row["step"] for row in metrics.read_jsonl(path)] == [1, 2, 3, 4, 5]
    writer = metrics.JsonlWriter(path, first_step=4)
    writer.write(4, {"loss": 2.0})
    writer.close()
    assert [(row["step"], row["loss"]) for row in metrics.read_jsonl(path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
    ]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_appending_without_a_first_step_keeps_all_but_the_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    metrics.JsonlWriter(path).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot be written \(disk\)"):
        metrics.JsonlWriter(path, first_step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_spoilt_line_in_the_middle_is_the_users_to_repair(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"line 2: b'hello'"):
        metrics.JsonlWriter(path)
    with pytest.raises(UserError, match="line 2"):
        metrics.read_jsonl(path)
    with pytest.raises(UserError, match="no such file"):
        metrics.read_jsonl(tmp_path / "none.jsonl")


def events(folder):
    """Events in a folder of TensorBoard files: length (8 bytes), checksum (4), data, checksum
    (4)."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_scalars_and_the_purge_mark_of_a_resumed_run(tmp_path):
    writer = metrics.TensorBoardWriter(tmp_path, first_step=5)
    writer.write(5, {"loss": 0.25, "steps_per_s": 8})
    writer.progress(6, {"loss": 1.0})
    writer.close()
    writer.close()
    found = list(events(tmp_path))
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in found
        for value in event.summary.value
    }
    assert scalars == {("loss", 5): 0.25, ("steps_per_s", 5): 8.0}
    assert [event.step for event in found if event.HasField("session_log")] == [5]


def test_fan_out_closes_every_writer_even_when_one_fails():
    calls = []

    class Writer:
        def __init__(self, name, error=None):
            self.name, self.error = name, error

        def write(self, step, values):
            calls.append((self.name, "write", step, values["loss"]))

        def progress(self, step, values):
            calls.append((self.name, "progress", step))

        def close(self):
            calls.append((self.name, "close"))
            if self.error:
                raise self.error

    with (
        pytest.raises(OSError, match="full"),
        metrics.MetricWriters(Writer("a"), Writer("b", OSError("full"))) as both,
    ):
        both.write(1, {"loss": 2.0})
        both.progress(2, {})
    assert calls[:4] == [
        ("a", "write", 1, 2.0),
        ("b", "write", 1, 2.0),
        ("a", "progress", 2),
        ("b", "progress", 2),
    ]
    assert sorted(calls[4:]) == [("a", "close"), ("b", "close")]
    both.close()
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (12000, "3 h 20 min"),
        (187300, "2 d 4 h"),
    ],
)
def test_duration(seconds, text):
    assert metrics.duration(seconds) == text
