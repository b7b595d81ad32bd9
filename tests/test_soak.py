"""The soak sees what it looks for, goes on where it stopped, and a small one finds nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.robustness.soak import PARTS
from benchmarks.robustness.soaking.batches import batch, judge_again
from benchmarks.robustness.soaking.commands import Running
from benchmarks.robustness.soaking.images import ImageMutants
from benchmarks.robustness.soaking.place import Place, compare
from benchmarks.robustness.soaking.shim import Fault, Shim
from benchmarks.robustness.soaking.tally import Record, Tally

ROOT = Path(__file__).parents[1]
ROWS = (("a.png", "1"), ("b.png", "2"), ("c.png", "3"))

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.mark.parametrize(
    ("found", "counted"),
    [
        (ROWS, {}),
        (ROWS[:2], {"rows_lost": 1}),
        ((*ROWS, ROWS[0]), {"rows_doubled": 1}),
        (ROWS[::-1], {"files_out_of_order": 1}),
        ((*ROWS[:2], ("c.png", "4")), {"rows_changed": 1}),
    ],
)
def test_rows_are_compared_with_an_undisturbed_scans(found: Any, counted: dict[str, int]) -> None:
    tally = Tally()
    compare(found, ROWS, tally, step="", seed=0)
    assert {name: n for name, n in tally.counts.items() if name != "results compared"} == counted


@pytest.mark.parametrize(
    ("program", "counted"),
    [
        ("import sys; print('gbad-batch: no', file=sys.stderr); sys.exit(1)", {}),
        ("import sys; sys.exit(1)", {"unhandled": 1}),
        ("1 / 0", {"unhandled": 1}),
        ("import os; os.abort()", {"unhandled": 1}),
        ("import time; time.sleep(1000)", {"hangs": 1}),
    ],
)
def test_a_command_ends_with_one_sentence(program: str, counted: dict[str, int]) -> None:
    tally = Tally()
    Running([sys.executable, "-c", program]).ended(3).judge(tally, codes=(0, 1), step="", seed=0)
    assert {name: n for name, n in tally.counts.items() if name != "scans"} == counted


def test_a_pixel_that_nobody_wrote_is_seen(tmp_path: Path) -> None:
    mutants, tally = ImageMutants(0, tmp_path), Tally()

    def careless(row: Any, _data: bytes) -> Any:
        row.status = "ok"
        return np.empty((500, 500, 3), np.uint8)

    mutants._decoder = careless  # type: ignore[assignment]
    mutants(0, tally)
    assert tally.counts["unwritten"] == 1


def test_a_mutant_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (ImageMutants(5, tmp_path) for _ in range(2))
    assert all(first.mutant(number) == second.mutant(number) for number in range(50))


def test_a_finding_that_is_mended_is_taken_back(tmp_path: Path) -> None:
    kept = Tally()
    kept.find("misread", "of code that is no more", seed=29_000_011, number=686, format="tiff")
    kept.find("hangs", "what a mutant alone does not show", seed=1, number=1)
    judge_again(kept, Place.bare(tmp_path))
    assert [finding["kind"] for finding in kept.findings] == ["hangs"]
    assert kept.counts == {"misread": 0, "hangs": 1, "judged again": 1}


def test_counts_go_on_with_the_same_seed(tmp_path: Path) -> None:
    record = Record.open(tmp_path / "soak.json", 3)
    record.tally.counts["kills"] = 7
    record.tally.find("hangs", "one", seed=3)
    record.save({"cpu": "a CPU"})
    again = Record.open(tmp_path / "soak.json", 3)
    assert again.tally == record.tally
    assert json.loads((tmp_path / "soak.json").read_text())["cpu"] == "a CPU"
    assert not Record.open(tmp_path / "soak.json", 4).tally.counts


@needs_compiler
def test_the_nth_write_fails_and_the_clock_jumps(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "for n in range(5):\n"
        "    try: print(os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'four'))\n"
        "    except OSError as error: print(error.errno)\n"
        "print(time.time() > 4e9)\n"
    )
    with Shim(tmp_path / "shim", tmp_path) as shim:
        said = {}
        for name, fault in {
            "once": Fault("write", 2, 28),
            "for good": Fault("write", 2, 5, every=1),
            "short": Fault("write", 4, 0),
            "open": Fault("open", 1, 24),
        }.items():
            shim.arm(fault)
            shim.set_clock(3_000_000_000)
            words = [sys.executable, "-c", program, str(tmp_path / "file")]
            done = subprocess.run(
                words, env=os.environ | shim.environment, capture_output=True, text=True, check=True
            )
            said[name] = done.stdout.split()
            assert shim.fired == (4 if name == "for good" else 1)
    assert said["once"] == ["4", "28", "4", "4", "4", "True"]
    assert said["for good"] == ["4", "5", "5", "5", "5", "True"]
    assert said["short"] == ["4", "4", "4", "2", "4", "True"]
    assert said["open"] == ["24", "4", "4", "4", "4", "True"]


@pytest.mark.slow
def test_a_small_soak_finds_nothing(tmp_path: Path) -> None:
    parts = ",".join(name for name in PARTS if name != "states")
    words = ["--rounds", "1", "--seed", "7", "--parts", parts, "--work", tmp_path]
    kept = tmp_path / "soak.json"
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "soak", *words, "--kept", kept],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = json.loads(kept.read_text())["counts"]
    assert counts["kills"] >= 1
    assert counts["mutants"] >= 1000
    assert counts["results compared"] >= 5


@pytest.mark.slow
def test_states_that_were_changed_open_or_are_refused(tmp_path: Path) -> None:
    tally = batch("states", Place(tmp_path, tmp_path, tmp_path), seed=7, numbers=range(100))
    assert tally.findings == []
    assert tally.counts["state_mutants"] == 100
