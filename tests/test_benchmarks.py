"""Benchmarks print a table for a person, write the same figures by name, and fail when a bar is not kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.report import Report, write_json

ROOT = Path(__file__).parents[1]


def _benchmarks(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_without_a_name_they_are_listed_with_their_idea() -> None:
    listed = _benchmarks()
    assert listed.returncode == 0
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()[2:]]
    assert {"footprint", "startup"} <= {name for name, _ in lines}
    assert all(len(line) == 2 and line[1].endswith(".") for line in lines)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    said = _benchmarks("speed-of-light")
    assert said.returncode == 2
    assert "startup" in said.stderr


def test_one_run_prints_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    ran = _benchmarks("startup", "--repeat", "1", "--json", str(tmp_path / "figures.json"))
    written = json.loads((tmp_path / "figures.json").read_text())
    assert ran.returncode == (1 if written["failed"] else 0), ran.stderr
    assert {"help_s", "import_s", "cpu", "commit", "versions", "machine"} <= written.keys()
    assert f"{written['help_s']:.6g}" in ran.stdout
    assert "numpy" in written["versions"]


def test_finished_rows_are_found_again(tmp_path: Path) -> None:
    ran = _benchmarks("resume", "--rows", "2000", "--json", str(tmp_path / "figures.json"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["rows_lost"] == 0


@pytest.mark.slow
def test_results_are_asked_again_and_copied(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = ("--rows", "2000", "--rounds", "1", "--parts", "rescore", "signed", "--features", "500")
    words += ("--pictures", "8")
    ran = _benchmarks("rescreen", *words, "--signed-rows", "3000", "--json", str(figures))
    written = json.loads(figures.read_text())
    assert ran.returncode == (1 if written["failed"] else 0), ran.stderr
    few = {"decide_pfa_rows_per_s", "decide_decision_rows_per_s", "rescore_images_per_s"}  # rows
    assert set(written["failed"]) <= few
    assert written["flipped_bit_named"] == 1
    assert written["rescore_flips"] == 0
    assert {
        "bare_copy_rows_per_s",
        "bare_copy_one_core_rows_per_s",
        "decide_pfa_of_bare",
        "diff_s",
        "diff_peak_mb",
        "bags_s",
        "bags_peak_mb",
    } <= written.keys()


@pytest.mark.slow
def test_decide_is_compared_with_scans() -> None:
    ran = _benchmarks("decided", "--pictures", "8")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_an_update_is_timed_and_gives_the_rows_of_a_whole_scan(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    ran = _benchmarks("update", "--images", "30", "--json", str(figures))
    written = json.loads(figures.read_text())
    assert written["failed"] == ["update_share"], ran.stderr  # starting takes longer than 30 images
    assert written["results_differing"] == 0


def test_a_benchmark_has_its_own_options() -> None:
    assert "--repeat" in _benchmarks("startup", "--help").stdout


@pytest.mark.parametrize(
    ("value", "at_most", "at_least", "passed"),
    [
        (3.0, 3, None, True),
        (3.1, 3, None, False),
        (2.9, None, 3, False),
        (0, 0, 0, True),
        (1, 0, 0, False),
        (float("nan"), 3, None, False),
        (float("nan"), None, 3, False),
        (float("nan"), None, None, True),
    ],
)
def test_a_bar_is_kept_or_fails(
    value: float, at_most: float | None, at_least: float | None, passed: bool
) -> None:
    report = Report("bars")
    report.add("figure", value, "levels", at_most=at_most, at_least=at_least)
    assert report.passed is passed
    assert ("FAILED" in report.table()) is not passed


def test_nothing_measured_is_a_failure() -> None:
    assert not Report("empty").passed


def test_a_figure_has_one_value() -> None:
    report = Report("twice")
    report.add("figure", 1)
    with pytest.raises(ValueError, match="twice"):
        report.add("figure", 2)


def test_failed_figures_are_named(tmp_path: Path) -> None:
    report = Report("failed")
    report.add("rows_lost", 2, at_most=0)
    report.add("kills", 20)
    write_json(report, "crash", tmp_path / "crash.json")
    written = json.loads((tmp_path / "crash.json").read_text())
    assert (written["failed"], written["rows_lost"], written["kills"]) == (["rows_lost"], 2, 20)
