"""`python -m benchmarks gpu`: what needs no GPU of it; it keeps its time and names what has not run."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch_bundle
from benchmarks.archives import bags, linked
from benchmarks.report import Report
from benchmarks.speed import gpu
from benchmarks.speed.gpu_parts import PARTS, Subject, measured
from processes import runs

from gbad_batch.engine.bundle import write_bundle

ROOT = Path(__file__).parents[1]
ON_A_CPU = {  # parts that need a GPU only to be fast, with the figures that they give
    "parity": {"parity_ready_s", "parity_loss_rel_max", "parity_flips_max", "decisions_equal"},
    "stages": {"engine_img_s", "decode_img_s"},
    "scan": {"scan_img_s", "scan_startup_s"},
    "loader": {"loader_img_s"},
    "dali": {"dali_img_s"},
    "decision": {"decision_numpy_us", "decision_torch_us"},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks", "gpu", "--json", str(tmp_path / "gpu.json")]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("gpu: no NVIDIA GPU can be measured: none is here, and torch")
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""
    assert not list(tmp_path.iterdir())


def test_its_parts_are_those_that_can_be_run() -> None:
    assert gpu.PARTS.keys() == PARTS.keys()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    root = tmp_path_factory.mktemp("subject")
    bundle = write_bundle(root / "bundle", torch_bundle.manifest(), torch_bundle.files())
    pictures = bags(root / "bags", 4)
    return Subject(bundle, pictures, linked(root / "archive", pictures, 12), device="cpu", seconds=0.01)


@pytest.mark.parametrize("name", ON_A_CPU)
@pytest.mark.slow
def test_a_part_measures_what_it_names(subject: Subject, name: str) -> None:
    found = {figure["name"]: figure for figure in measured(name, subject)["figures"]}
    assert found.keys() >= ON_A_CPU[name]
    assert all(figure["value"] > 0 for figure in found.values() if figure["unit"])
    report = Report("all")
    gpu.add_part(report, name, gpu.Part(list(found.values())))
    assert report.passed


SLEEPING = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = [sys.executable, "-c", SLEEPING, str(file)]
    seconds = 0.2
    while not (file.exists() and file.read_text()):
        assert gpu.finished(command, seconds) is None
        seconds *= 2  # until the machine is fast enough
    for _ in range(1000):
        if not runs(int(file.read_text())):
            return
        time.sleep(0.02)
    pytest.fail("what it has started still runs")


def test_what_has_not_run_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("all")
    gpu.add_part(report, "scan", gpu.run_part("scan", [], 1.0))
    monkeypatch.setitem(gpu.PARTS, "dali", ("no_such_package", "no_such_package.inside"))
    gpu.add_part(report, "dali", gpu.run_part("dali", [], 100.0))
    assert report.notes == [
        "scan: not run: out of time",
        "dali: not run: no_such_package, no_such_package.inside not installed",
    ]
    assert not report.figures


@pytest.mark.slow
def test_a_part_that_fails_fails_the_report() -> None:
    report = Report("all")
    gpu.add_part(report, "stages", gpu.run_part("stages", ["--nonsense"], 600.0))
    assert not report.passed
    assert [figure.name for figure in report.figures] == ["stages_failed"]
    assert "--nonsense" in report.notes[0] or "required" in report.notes[0]


def test_the_bars_are_those_of_end_to_end() -> None:
    report = Report("all")
    for name, speed in {"engine": 20_000, "decode": 10_000, "scan": 6_000, "loader": 1_500}.items():
        report.add(f"{name}_img_s", speed, "img/s")
    gpu.add_ratios(report)
    found = {figure.name: (figure.value, figure.passed) for figure in report.figures if not figure.unit}
    assert found == {"scan_of_slower_stage": (0.6, False), "scan_of_loader": (4.0, True)}
