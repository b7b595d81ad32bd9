"""The recipe of the default bundle: its drawn sets, which are resumed, and its steps, which are timed."""

import json
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from gbad_batch.engine.datasets.arrays import read_row
from gbad_batch.engine.datasets.labels import Gathered
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row
from gbad_batch.engine.synth import SynthSettings, write_archive
from gbad_batch.engine.system.progress import silent
from gbad_batch.engine.training import drawing
from gbad_batch.engine.training.data import load_labelled
from gbad_batch.engine.training.drawing import draw_set, gather_set
from gbad_batch.engine.training.stopwatch import Stopwatch

SIZE = 64
SETTINGS = SynthSettings(5, 7, 0.5)


def labels_of(folder: Path) -> Gathered:
    gathered = Gathered()
    gather_set(folder, SETTINGS, SIZE, "train", gathered)
    return gathered


def draw_and_die(folder: Path) -> None:
    drawing.AT_ONCE = 2

    def die(_phase: str, done: int, _total: int, _figures: object) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    draw_set(folder, SETTINGS, SIZE, die)


@pytest.mark.slow
def test_a_drawn_set_is_what_a_scan_makes_of_an_archive(tmp_path: Path):
    draw_set(tmp_path / "set", SETTINGS, SIZE, silent)
    write_archive(tmp_path / "archive", SETTINGS)
    archive = load_labelled(tmp_path / "archive" / "boxes.json", tmp_path / "archive")
    labels, decoder = labels_of(tmp_path / "set").labels(tmp_path), Decoder(SIZE, DecodeLimits())
    assert np.array_equal(labels.labels, archive.labels)
    assert set(labels.splits) == {"train"}
    for k, path in enumerate(archive.paths):
        assert np.array_equal(read_row(tmp_path / labels.names[k]), decoder(Row("bag"), path.read_bytes()))  # pyright: ignore
        assert len(labels.boxes[k]) == len(archive.boxes[k])
        for box in labels.boxes[k]:
            assert 0 <= box.x <= box.x + box.width <= SIZE + 1e-6
            assert 0 <= box.y <= box.y + box.height <= SIZE + 1e-6


@pytest.mark.slow
def test_a_set_whose_drawing_was_killed_ends_with_the_same_bytes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(drawing, "AT_ONCE", 2)
    draw_set(tmp_path / "whole", SETTINGS, SIZE, silent)
    process = get_context("spawn").Process(target=draw_and_die, args=(tmp_path / "killed",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = (tmp_path / "killed" / "0000.npy").stat().st_mtime_ns
    draw_set(tmp_path / "killed", SETTINGS, SIZE, silent)
    assert (tmp_path / "killed" / "0000.npy").stat().st_mtime_ns == first  # is not drawn again
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()


def test_steps_are_timed_over_all_processes(tmp_path: Path):
    for _ in range(2):
        clock = Stopwatch(tmp_path / "seconds.json", silent)
        clock("draw", 1, 2, {})
        clock("train", 1, 1, {})
    stored = json.loads((tmp_path / "seconds.json").read_text())
    assert stored == clock.seconds  # pyright: ignore
    assert stored.keys() == {"draw", "train"}
    again = Stopwatch(tmp_path / "seconds.json", silent)
    again("draw", 1, 2, {})
    assert again.seconds["draw"] > stored["draw"]


def test_no_second_counts_for_two_steps(tmp_path: Path):
    began = time.monotonic()
    clock = Stopwatch(tmp_path / "seconds.json", silent)
    training = Stopwatch(tmp_path / "run" / "seconds.json", clock)  # as the recipe's training is timed
    clock("draw", 1, 1, {})
    training("phase I", 1, 1, {})
    clock("judge", 1, 1, {})
    assert clock.seconds.keys() == {"draw", "phase I", "judge"}
    assert sum(clock.seconds.values()) <= time.monotonic() - began
