"""The harness at tiny sizes: each benchmark runs, gives its keys, and finds what is planted."""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
import torch_bundle
from benchmarks import history, nightly
from benchmarks.__main__ import main
from benchmarks.archives import SIDES, Passes, sized_bags
from benchmarks.bench import systems
from benchmarks.bench.accuracy import agreement
from benchmarks.bench.systems import Command, NotRun
from benchmarks.bench.techniques import TECHNIQUES
from benchmarks.bench.untrained import write_untrained
from benchmarks.report import Report, record
from benchmarks.robustness import growth
from PIL import Image

from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.runtime import OUTPUTS
from gbad_batch.engine.system.machine import cpu_model

ROOT = Path(__file__).parents[1]
IMAGES = 3
BENCH = ["--images", str(IMAGES), "--rounds", "1", "--seconds", "0.1"]
LOSSY = """
import subprocess, sys
import pyarrow.parquet as pq
code = subprocess.run([{command!r}, *sys.argv[1:]]).returncode
out = sys.argv[sys.argv.index("--out") + 1]
if code == 0 and (rows := pq.read_table(out)).num_rows > 1:
    pq.write_table(rows.slice(1), out)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_bundle(folder, torch_bundle.manifest(), torch_bundle.files()).path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "untrained"
    return write_untrained(folder, torch_bundle.ARCHITECTURE, count=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        pixels = np.array(coarse.resize(tuple(random.integers(600, 900, 2))))
        (folder / f"bag{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 90))
    return folder


@pytest.fixture
def lossy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the benchmarks run a command that drops a row of each result."""
    script = tmp_path / "lossy.py"
    script.write_text(LOSSY.format(command=systems.COMMAND[0]))
    monkeypatch.setattr(systems, "COMMAND", (sys.executable, str(script)))


def figures_of(words: list[str], file: Path) -> dict[str, Any]:
    """Run a benchmark, whatever its bars say of a figure, and return what it wrote."""
    assert main([*words, "--json", str(file)]) in (0, 1)
    return json.loads(file.read_text())


# --- throughput ---


@pytest.fixture(scope="module")
def throughput(tmp_path_factory: pytest.TempPathFactory, bundle: Path, archive: Path) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("work")
    words = ["throughput", "--model", str(bundle), "--resnext", str(bundle), "--archive", str(archive)]
    words += [*BENCH, "--no-cold", "--work", str(work), "--systems", "eager", "fp32", "int8", "default"]
    return figures_of(words, work / "throughput.json")


@pytest.mark.slow
def test_throughput_gives_its_keys(throughput: dict[str, Any]) -> None:
    keys = "cpu vnni ratio_int8 ratio_fp32 fraction_of_limit_resnext50 fraction_of_limit_default"
    keys += " startup_seconds map_fp32 map_int8 agreement images_per_second versions machine commit bundles"
    assert set(keys.split()) <= throughput.keys()
    assert throughput["cpu"] == cpu_model()
    assert {"eager", "fp32", "default"} <= throughput["images_per_second"].keys()
    assert throughput["ratio_fp32_low"] <= throughput["ratio_fp32"] <= throughput["ratio_fp32_high"]
    assert throughput["fraction_of_limit_default"] > 0
    for role in ("resnext50", "default"):
        spent = throughput["stages"][role]["limit_us"]
        assert spent.keys() == {"read", "hash", "decode", "resize", "engine"}
        assert min(spent.values()) > 0
        assert throughput[f"limit_img_s_{role}"] > 0
    assert throughput["images_missing"] == 0
    assert all(len(said.split(", ")[-1]) == 64 for said in throughput["bundles"].values())


@pytest.mark.slow
def test_what_could_not_be_run_is_named_with_its_reason(throughput: dict[str, Any]) -> None:
    assert throughput["ratio_int8"] is None
    assert "INT8" in throughput["not_run"]["ratio_int8"]
    assert throughput["map_fp32"] is None
    assert "--labelled" in throughput["not_run"]["map_fp32"]
    assert throughput["not_run"]["img_s_cold"] == "not asked for"
    assert any(name.startswith("ratio_fp32_with") for name in throughput["not_run"])


@pytest.mark.slow
def test_the_peer_finds_what_the_command_finds(throughput: dict[str, Any]) -> None:
    alike = throughput["systems"]["eager"]["agreement_with_fp32"]
    assert alike["images"] == IMAGES
    assert alike["loss_rel_max"] < 0.05


@pytest.mark.slow
def test_the_stages_of_a_scan_are_told(throughput: dict[str, Any]) -> None:
    found = throughput["stages"]["resnext50"]
    assert found["busy_us"].keys() == {"list", "read", "decode", "score", "columns", "write"}


@pytest.mark.slow
def test_the_users_loop_is_tried_in_all_its_settings(throughput: dict[str, Any]) -> None:
    searched = throughput["loop"]["searched"]
    assert throughput["loop"]["settings"] == max(searched, key=searched.__getitem__)
    for workers in (0, 1, 2):
        for batch in (1, 8, 16):
            assert any(said.startswith(f"{workers} workers, batch {batch}, ") for said in searched)
    assert any("no_grad" in said for said in searched)


@pytest.mark.usefixtures("lossy")
@pytest.mark.slow
def test_a_missing_row_is_counted(bundle: Path, archive: Path, tmp_path: Path) -> None:
    command = Command(bundle, "fp32", tmp_path / "engines", archive / "bag0.jpg")
    assert command(archive, tmp_path / "out.parquet").missing == 1


def test_a_refusal_is_a_system_that_is_not_run(bundle: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="--precision"):
        Command(bundle, "fp16", tmp_path / "engines", archive / "bag0.jpg")


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if name not in ("inductor", "openvino_int8")])
def test_techniques_agree(name: str, bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.read(bundle)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = TECHNIQUES["eager"](opened, tmp_path)(pixels, 8)
        try:
            found = TECHNIQUES[name](opened, tmp_path)(pixels, 8)
        except NotRun as reason:
            pytest.skip(str(reason))
    for output in OUTPUTS:
        np.testing.assert_allclose(getattr(found, output), getattr(wanted, output), rtol=1e-3, atol=1e-4)


@pytest.mark.compiles
def test_what_inductor_compiles_agrees(bundle: Path, tmp_path: Path) -> None:
    test_techniques_agree("inductor", bundle, tmp_path)


# --- what they are measured on ---


@pytest.mark.slow
def test_an_untrained_bundle_is_whole(untrained: Path) -> None:
    made = Bundle.read(untrained)
    assert made.manifest.demo
    assert made.has_int8
    assert set(made.manifest.decisions) == {"gbad", "classes", "combined"}
    assert made.gate().reconstruction_loss.std() > 0


def test_bags_have_the_sides_that_are_said(tmp_path: Path) -> None:
    for path in sized_bags(tmp_path, 2):
        with Image.open(path) as image:
            assert all(SIDES[0] <= side <= SIDES[1] for side in image.size)


def test_passes_hold_every_picture_so_often(archive: Path, tmp_path: Path) -> None:
    passes = Passes(tmp_path / "passes", sorted(archive.iterdir()))
    found = [path for path in passes(3).rglob("*") if path.is_file()]
    assert len({path.name for path in found}) == 3 * IMAGES
    assert len({path.stat().st_ino for path in found}) == IMAGES


# --- staircase ---


@pytest.mark.slow
def test_staircase_has_a_row_for_each_step(untrained: Path, archive: Path, tmp_path: Path) -> None:
    words = ["staircase", "--model", str(untrained), "--archive", str(archive), "--work", str(tmp_path)]
    steps = ["openvino_int8", "fp32", "int8"]
    found = figures_of([*words, *BENCH, "--steps", *steps], tmp_path / "staircase.json")
    for name in ("openvino_int8", "fp32", "int8"):
        assert found[f"img_s_{name}"] > 0
        assert found[f"peak_mb_{name}"] > 0
    # both decode alike but for a level here and there; what is left is INT8's own
    assert found["loss_rel_max_fp32"] == 0 < found["loss_rel_max_int8"]
    assert found["loss_rel_max_openvino_int8"] == pytest.approx(found["loss_rel_max_int8"], abs=0.05)
    assert any(kind.startswith("Convolution") for kind in found["operator_ms"]["openvino_int8"])


# --- growth ---


@pytest.mark.slow
def test_growth_gives_its_keys(bundle: Path, tmp_path: Path) -> None:
    words = ["growth", "--share", "0.002", "--model", str(bundle), "--folder", str(tmp_path)]
    found = figures_of(words, tmp_path / "growth.json")
    keys = {"peak_mb_10k", "peak_mb_1m", "find_finished_1m_seconds", "img_s_1k", "img_s_10k", "img_s_1m"}
    assert keys | {"exponent_whole", "exponent_listed", "exponent_listed_list"} <= found.keys()
    assert found["finished_rows_lost"] == 0


def test_what_grows_with_the_square_is_seen() -> None:
    assert growth.exponent([100, 1000, 10_000], [1, 100, 10_000]) == pytest.approx(2)


# --- nightly ---


def _words(bundle: Path, archive: Path, work: Path, past: Path) -> list[str]:
    words = ["nightly", "--history", str(past), "--parts", "throughput", "--work", str(work), *BENCH]
    return [*words, "--model", str(bundle), "--resnext", str(bundle), "--archive", str(archive)]


def _run(cpu: str, failed: tuple[str, ...] = (), **figures: float) -> dict[str, Any]:
    named = {"cpu": cpu, "commit": "abc", "date": "2026-01-01T02:30:00+00:00", "failed": list(failed)}
    return named | figures


@pytest.mark.slow
@pytest.mark.usefixtures("lossy")
def test_a_slower_night_and_a_lost_image_fail(
    bundle: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    past = tmp_path / "nights.jsonl"
    history.append(past, _run(cpu_model(), ratio_fp32=1e9))  # once it was so fast
    history.append(past, _run("another CPU", ratio_default=1e9))
    assert main(_words(bundle, archive, tmp_path / "work", past)) == 1
    tonight = history.read(past)[-1]
    assert tonight["failed"] == ["images_missing", "ratio_fp32"]
    assert tonight["ratio_default"] > 0
    assert "ratio_default: no earlier run" in capsys.readouterr().out
    page = past.with_suffix(".md").read_text()
    assert "images_missing, ratio_fp32" in page
    assert f"({past.with_suffix('.png').name})" in page
    with Image.open(past.with_suffix(".png")) as plot:
        assert plot.size[0] > 400


def test_the_reference_is_the_median_of_the_last_runs_on_this_cpu() -> None:
    runs = [_run("a", ratio=number) for number in range(30)]
    runs += [_run("b", ratio=1000), _run("a", ("ratio",), ratio=1), _run("a")]
    assert history.reference(runs, "a", "ratio") == np.median(range(20, 30))
    assert history.reference(runs, "c", "ratio") is None


def test_a_damaged_history_is_refused_by_its_line(tmp_path: Path) -> None:
    past = tmp_path / "nights.jsonl"
    history.append(past, _run("a"))
    past.write_text(past.read_text() + "{\n")
    with pytest.raises(Refused, match="line 2"):
        history.read(past)
    assert main(["nightly", "--history", str(past)]) == 2


def test_the_examples_of_the_docs_are_accepted() -> None:
    page = (ROOT / "docs" / "nightly.md").read_text()
    commands = re.findall(r"-m benchmarks nightly (--.*?)(?: > .*)?$", page, re.MULTILINE)
    parser = argparse.ArgumentParser()
    nightly.options(parser)
    assert len(commands) == 2
    for words in commands:
        assert parser.parse_args(shlex.split(words)).band == nightly.BAND


# --- records ---


def test_a_figure_that_was_not_run_is_null_and_has_its_reason() -> None:
    report = Report("some")
    report.add("figure", 1)
    report.not_run["other"] = "it needs a GPU"
    written = record(report, "some")
    assert written["other"] is None
    assert written["not_run"] == {"other": "it needs a GPU"}
    assert "it needs a GPU" in report.table()


def test_results_without_an_image_in_common_are_not_compared(tmp_path: Path) -> None:
    columns = {"anomalous": [True], "reconstruction_loss": [1.0], "feature_matching_loss": [1.0]}
    for name in ("a", "b"):
        pq.write_table(pa.table({"uri": [f"/{name}.jpg"], **columns}), tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="nothing is compared"):
        agreement(tmp_path / "a.parquet", tmp_path / "b.parquet")
