"""The comparisons of detectors at tiny sizes: every row is there, and what is done is not done again."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.__main__ import main
from benchmarks.quality.comparison import Comparison, judge
from benchmarks.quality.contest import open_run

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import default_bundle_path
from gbad_batch.engine.datasets import read_labels
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.evaluation.bootstrap import Bootstrap

DECISIONS = ("gbad", "combined", "class_maximum", "reconstruction", "feature_matching", "autoencoder")
RIVALS = ("l1_norm", "pca", "mahalanobis", "neighbours", "isolation_forest")


def figures_of(words: list[str], file: Path) -> dict[str, float]:
    assert main([*words, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def times(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}


# --- judging ---


def test_a_detector_is_judged_by_thresholds_of_the_calibration_images():
    positive = np.arange(100) >= 50
    benign = np.linspace(0, 1, 100)
    test = np.r_[np.linspace(0, 0.9, 49), 0.96, np.full(25, 0.5), np.full(25, 2.0)]
    judged = judge(positive, [test], [benign], Bootstrap.by_group([""] * 100))
    assert (judged["pd_02"].mean, judged["pfa_02"].mean) == (0.5, 0)
    assert (judged["pd_05"].mean, judged["pfa_05"].mean) == (0.5, 0.02)
    low, high = judged["pd_05"].low, judged["pd_05"].high
    assert low is not None
    assert high is not None
    assert low < 0.5 < high


def test_seeds_give_a_mean_a_range_and_one_interval():
    random = np.random.default_rng(0)
    positive = np.arange(200) >= 100
    good, bad = positive + random.normal(size=200), random.normal(size=200)
    benign = random.normal(size=100)
    bags = Bootstrap.by_group([""] * 200)
    both = judge(positive, [good, bad], [benign, benign], bags)["auroc"]
    alone = [judge(positive, [each], [benign], bags)["auroc"].mean for each in (good, bad)]
    assert (both.least, both.most) == (min(alone), max(alone))
    assert both.mean == pytest.approx(np.mean(alone))
    assert both.low is not None
    assert both.high is not None
    assert both.low < both.mean < both.high


def test_the_table_has_a_row_for_each_detector_and_all_figures_by_name():
    random, positive = np.random.default_rng(0), np.arange(60) >= 30
    report = Comparison("two")
    for name, seeds in (("steady", 1), ("lucky", 2)):
        scores = [random.normal(size=60) for _ in range(seeds)]
        report.add_row(name, judge(positive, scores, scores, Bootstrap.by_group([""] * 60)))
    lines = report.table().splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("steady", "lucky"))] == ["steady", "lucky"]
    assert sum("over seeds" in line for line in lines) == 1
    assert {"steady_auroc", "lucky_pd_02", "lucky_auroc_low", "lucky_pfa_05_most"} <= {
        figure.name for figure in report.figures
    }


# --- detectors ---


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


SHORT = ["--steps", "30", "--seeds", "2"]
TINY = [*SHORT, "--pixels", "64", "--epochs", "1"]
COMPARED = ["detectors", "--images", "60", *SHORT, "--ganomaly-epochs", "0"]


@pytest.fixture(scope="module")
def compared(work: Path) -> dict[str, float]:
    return figures_of([*COMPARED, "--work", str(work)], work / "first.json")


@pytest.mark.slow
def test_every_detector_has_its_figures(compared: dict[str, float]):
    for name in (*DECISIONS, *RIVALS):
        for figure in ("auroc", "ap", "pd_02", "pfa_02", "pd_05", "pfa_05"):
            assert 0 <= compared[f"{name}_{figure}_least"] <= compared[f"{name}_{figure}"] <= 1
    assert compared["gbad_auroc_least"] < compared["gbad_auroc_most"]
    assert compared["pca_auroc_least"] == compared["pca_auroc_most"]


@pytest.mark.slow
def test_what_is_stored_is_not_computed_again(work: Path, compared: dict[str, float]):
    before = times(work, "*.npz") | times(work, "*.pt") | times(work, "*.jpg")
    lost = sorted(work.rglob("bigan-1.npz"))[0]
    del before[lost]
    lost.unlink()
    again = figures_of([*COMPARED, "--work", str(work)], work / "again.json")
    after = times(work, "*.npz") | times(work, "*.pt") | times(work, "*.jpg")
    assert {path: after[path] for path in before} == before
    assert [again[name] for name in compared if name.startswith("gbad")] == [
        compared[name] for name in compared if name.startswith("gbad")
    ]


@pytest.mark.slow
def test_the_network_of_a_bundle_is_compared_on_a_data_set(work: Path, compared: dict[str, float]):
    (data,) = work.glob("bags-*")
    words = ["--model", str(default_bundle_path()), "--data", str(data), "--work", str(work)]
    given = figures_of([*COMPARED, *words], work / "given.json")
    assert given["gbad_auroc"] == compared["gbad_auroc"]
    with np.load(sorted(work.rglob("pca-0.npz"))[0]) as scores:
        assert np.isfinite(scores["pca"]).all()


@pytest.mark.slow
def test_features_are_those_of_a_scan(work: Path, compared: dict[str, float], tmp_path: Path):
    (run,), (data,) = work.glob("features-*"), work.glob("bags-*")
    assert compared
    contest = open_run(run, data, data)
    settings = ScanSettings(
        [str(data / "images")], out=tmp_path / "rows.parquet", device="cpu", precision="fp32"
    )
    rows = {Path(row.uri).name: row for row in Scan(settings).rows()}
    found = [rows[path.name].p_gun for path in contest.labelled.paths]
    np.testing.assert_allclose(1 / (1 + np.exp(-contest.logits[:, 0])), np.array(found, float), atol=1e-5)


@pytest.mark.slow
def test_a_run_of_other_images_is_refused(work: Path, compared: dict[str, float], tmp_path: Path):
    (run,), (data,) = work.glob("features-*"), work.glob("bags-*")
    assert compared
    lines = (data / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(Refused, match="other images"):
        open_run(run, tmp_path / "labels.csv", data)
    with pytest.raises(Refused, match="no run folder"):
        open_run(tmp_path, data, data)


@pytest.mark.slow
def test_where_anomalib_cannot_be_had_the_row_says_so(
    work: Path,
    compared: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert compared
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    words = [*COMPARED, "--work", str(work), "--ganomaly-epochs", "1"]
    assert main(words) == 0
    assert "ganomaly: not run" in capsys.readouterr().out


@pytest.mark.slow
def test_settings_of_the_bigan_are_compared_on_the_same_features(work: Path, compared: dict[str, float]):
    words = ["bigan", "--images", "60", *SHORT, "--work", str(work), "--only", "default", "latent_16"]
    found = figures_of(words, work / "bigan.json")
    assert found["default_gbad_auroc"] == compared["gbad_auroc"]
    # a dozen images have few AUROCs, so one figure alone may well be the same
    default = {name: figure for name, figure in found.items() if name.startswith("default_")}
    renamed = ((name.replace("default", "latent_16"), figure) for name, figure in default.items())
    assert any(found.get(name, figure) != figure for name, figure in renamed)


# --- leave one out ---


@pytest.mark.slow
def test_a_class_left_out_is_in_no_training(tmp_path: Path):
    words = ["leave_one_out", "--class", "gun", "--images", "14", "--windows", "1", *TINY]
    words += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "parts")]
    found = figures_of(words, tmp_path / "first.json")
    for space in ("x", "pooled"):
        for name in (*DECISIONS, *RIVALS):
            for figure in ("auroc", "pd_02", "pd_05", "known_auroc"):
                assert 0 <= found[f"gun_{space}_{name}_{figure}"] <= 1
    (file,) = (tmp_path / "work").glob("without-gun-*/labels.json")
    labels = read_labels(file)
    with_guns = labels.labels[:, 0]
    assert with_guns.any()
    assert not labels.labels[with_guns, 1:].any()
    assert {labels.splits[k] for k in np.flatnonzero(with_guns)} == {"test"}
    part = tmp_path / "parts" / "gun.json"
    before = part.stat().st_mtime_ns
    assert figures_of(words, tmp_path / "again.json")["gun_x_gbad_auroc"] == found["gun_x_gbad_auroc"]
    assert part.stat().st_mtime_ns == before
    part.write_text(part.read_text().replace('"generator": "', '"generator": "another '))
    figures_of(words, tmp_path / "other.json")
    assert "another" not in part.read_text()


# --- boxes ---


@pytest.mark.slow
def test_arms_of_phase_one_are_compared(tmp_path: Path):
    words = ["boxes", "--images", "40", "--pixels", "64", "--epochs", "1", "--work", str(tmp_path / "work")]
    found = figures_of([*words, "--seeds", "1"], tmp_path / "first.json")
    arms = ("images", "windows", "places", "windows_and_places")
    assert all(0 < found[f"{arm}_gun"] <= 1 for arm in arms)
    before = times(tmp_path / "work", "*.npz")
    assert len({np.load(file)["probabilities"].tobytes() for file in before}) == len(before) == 4
    both = figures_of([*words, "--seeds", "2", "--only", "places"], tmp_path / "again.json")
    assert found["places_map"] in (both["places_map_least"], both["places_map_most"])
    assert both["places_map_least"] <= both["places_map"] <= both["places_map_most"]
    after = times(tmp_path / "work", "*.npz")
    assert before.items() <= after.items()
    assert len(after) == 5
