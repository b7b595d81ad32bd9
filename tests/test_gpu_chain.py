"""`gbad-batch doctor --gpu`: what it says where no GPU is, and each step that a CPU can do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch_bundle
from benchmarks.archives import bags
from click.testing import CliRunner

from gbad_batch.engine.bundle import write_bundle
from gbad_batch.engine.commands import gpu_chain
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.commands.gpu_chain import FAILS, FALLS_BACK, STEPS, WORKS, Subject, run_step

ON_A_CPU = ("nvjpeg", "hardware", "triton", "engine", "gate", "decision")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    root = tmp_path_factory.mktemp("chain")
    bundle = write_bundle(root / "bundle", torch_bundle.manifest(), torch_bundle.files())
    images = bags(root / "bags", 4)[0].parent
    return Subject("cpu", str(images), str(bundle.path), "auto", "auto", str(root / "cache"))


@pytest.mark.parametrize("name", ON_A_CPU)
@pytest.mark.slow
def test_a_step_shows_what_it_names(subject: Subject, name: str) -> None:
    outcome, found = STEPS[name](subject)
    assert outcome == WORKS
    assert {"nvjpeg": "4 images; pixels differ", "gate": "parity with FP32", "decision": "4 of 4 dec"}.get(
        name, ""
    ) in found


def test_without_a_compiler_kernels_work_by_fall_back(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    outcome, found = STEPS["triton"](replace(subject, device="cuda:0"))
    assert outcome == FALLS_BACK
    assert "plain torch computes" in found


def test_a_step_runs_in_a_process_of_its_own(subject: Subject, tmp_path: Path) -> None:
    step = run_step("gate", subject, tmp_path / "result.json")
    assert (step.outcome, step.said) == (WORKS, [])
    assert step.found.startswith("parity with FP32 on ")
    ended = run_step("gate", subject, tmp_path / "other.json", longest_s=0.01)
    assert (ended.outcome, ended.found) == (FAILS, "it did not end within 0 s")


def test_a_step_that_fails_keeps_the_librarys_words(subject: Subject, tmp_path: Path) -> None:
    whole = next(Path(subject.images).iterdir()).read_bytes()
    at = whole.index(b"\xff\xc4") + 5
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.jpg").write_bytes(whole[:at] + b"\xff" * 16 + whole[at + 16 :])
    step = run_step("nvjpeg", replace(subject, images=str(tmp_path / "images")), tmp_path / "result.json")
    assert step.outcome == FAILS
    said = "\n".join(step.said)
    assert "Traceback (most recent call last):" in said
    assert "Critical error in pipeline" in said  # DALI's


@without_gpu
@pytest.mark.parametrize(
    ("name", "words"), [("driver", "libcuda.so.1: cannot open"), ("nvml", "NVML Shared Library Not Found")]
)
def test_without_a_driver_the_loader_says_what_it_lacks(
    subject: Subject, tmp_path: Path, name: str, words: str
) -> None:
    step = run_step(name, replace(subject, device="cuda:0"), tmp_path / "result.json")
    assert step.outcome == FAILS
    assert words in step.found
    assert step.said[0] == "Traceback (most recent call last):"


@without_gpu
@pytest.mark.slow
def test_doctor_prints_a_report_and_hides_no_traceback(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_chain, "IMAGES", 4)
    words = ["doctor", "--gpu", "--model", subject.model, "--cache-dir", str(subject.cache_dir)]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 1
    report = json.loads(ran.stdout)
    assert report["device"] == "cuda:0"
    assert {"torch", "nvidia-dali-cuda130"} <= report["packages"].keys()
    assert [step["name"] for step in report["steps"]] == list(STEPS)
    lines = ran.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == list(STEPS)
    for step in report["steps"]:
        assert step["outcome"] == FAILS, step
        assert "Traceback (most recent call last):" in step["said"]
