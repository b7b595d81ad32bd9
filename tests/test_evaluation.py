"""Measures against scikit-learn and cases done by hand; the command on real scans, and what it refuses."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.evaluation import (
    Bootstrap,
    EvaluateSettings,
    Figure,
    Predictions,
    average_precisions,
    detection,
    evaluate,
    figures,
)
from gbad_batch.engine.evaluation.figures import gated
from gbad_batch.engine.evaluation.measures import (
    AGREEMENTS,
    Agreement,
    Auroc,
    AveragePrecision,
    DetectionAt,
    Measure,
    Ranking,
    Share,
)
from gbad_batch.engine.evaluation.pictures import draw
from gbad_batch.engine.model.calibration import threshold_at, wilson_interval
from gbad_batch.engine.row import THREATS

UNDEFINED = Figure(None, None, None)


def single(count: int, **options: int) -> Bootstrap:
    """Images that are each a bag of their own."""
    return Bootstrap(np.arange(count), **options)


def measures_of(positive: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, Measure]:
    """One measure of every kind."""
    ranking, predicted = Ranking(positive, scores), labels ^ (scores[:, None] > 1)
    found: dict[str, Measure] = {
        "ap": AveragePrecision(ranking),
        "ap_1_99": AveragePrecision(ranking, 99),
        "auroc": Auroc(ranking),
        "pd_5": DetectionAt(ranking, 0.05),
        "pd_50": DetectionAt(ranking, 0.5),
        "share": Share(scores > 0, positive),
    }
    for figure in AGREEMENTS:
        found[f"micro {figure}"] = Agreement(labels, predicted, figure)
        found[f"macro {figure}"] = Agreement(labels, predicted, figure, "macro")
        found[f"of one {figure}"] = Agreement(labels[:, :1], predicted[:, :1], figure, "macro")
    return found


# --- measures ---


@pytest.mark.parametrize("levels", [3, 40, 10**9], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("share", [0.5, 0.03], ids=["balanced", "rare"])
def test_sums_over_weights_equal_scikit_learn_on_repeated_images(levels: int, share: float):
    """An image of weight 3 counts as three images: what the bootstrap computes is what scikit-learn would."""
    random = np.random.default_rng(levels)
    positive, labels = random.random(400) < share, random.random((400, 3)) < share
    scores = np.floor(levels * random.normal(positive)) / levels
    weights = random.integers(0, 4, (3, 400))
    plain = measures_of(positive, scores, labels)
    for name, measure in plain.items():
        assert measure.weighted(np.ones((1, 400)))[0] == pytest.approx(measure.value(), rel=1e-12), name
    for row in weights:
        again = (np.repeat(each, row, axis=0) for each in (positive, scores, labels))
        for name, measure in measures_of(*again).items():
            found = plain[name].weighted(row[None].astype(float))[0]
            assert found == pytest.approx(measure.value(), rel=1e-12), name


def test_measures_of_a_ranking_done_by_hand():
    ranking = Ranking(np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert AveragePrecision(ranking).value() == pytest.approx((1 + 2 / 3) / 2)
    assert AveragePrecision(ranking, odds=9).value() == pytest.approx((1 + 2 / (2 + 9)) / 2)
    assert Auroc(ranking).value() == 0.75
    assert DetectionAt(ranking, 0.1).value() == 0.5
    assert DetectionAt(ranking, 0.5).value() == 1.0


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 100))
def test_ap_at_given_odds_knows_no_prevalence(positives: int, negatives: int, seed: int):
    """Repeating all positives, or all negatives, changes AP and not AP at 9 negatives to a positive."""
    random = np.random.default_rng(seed)
    positive = np.r_[np.ones(10, bool), np.zeros(30, bool)]
    scores = random.normal(positive)
    times = np.where(positive, positives, negatives)
    once = Ranking(positive, scores)
    often = Ranking(np.repeat(positive, times), np.repeat(scores, times))
    assert AveragePrecision(often, 9).value() == pytest.approx(AveragePrecision(once, 9).value())
    assert AveragePrecision(once, 3).value() == pytest.approx(AveragePrecision(once).value())  # 10 to 30
    assert Auroc(often).value() == pytest.approx(Auroc(once).value())


@pytest.mark.parametrize("pfa", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("digits", [0, 8], ids=["ties", "no ties"])
def test_detection_at_a_rate_is_the_best_that_any_threshold_gives(pfa: float, digits: int):
    random = np.random.default_rng(1)
    positive = np.arange(500) % 3 == 0
    scores = np.round(random.normal(positive), digits)
    allowed = [t for t in [*scores, np.inf] if (scores[~positive] >= t).mean() <= pfa]
    best = max((scores[positive] >= t).mean() for t in allowed)
    assert DetectionAt(Ranking(positive, scores), pfa).value() == pytest.approx(best)
    stored = threshold_at(scores[~positive], pfa)  # half way to the last score allowed
    assert (scores[positive] >= stored).mean() == pytest.approx(best, abs=0.01)


def test_a_gate_ranks_alarms_first_and_keeps_the_order_of_all_others():
    alarm = np.array([False, True, False, True, False])
    p = np.array([0.9, 0.1, 0.5, 0.2, np.nan])
    assert np.argsort(-gated(alarm, p)).tolist() == [3, 1, 0, 2, 4]
    assert len(np.unique(gated(alarm, p))) == 5  # p times zero would tie three of them
    close = np.array([1e-30, 2e-30])
    assert np.diff(gated(np.array([True, True]), close)) > 0


# --- intervals ---


def test_the_interval_of_a_rate_is_about_wilsons():
    positive = np.arange(2000) % 2 == 0
    scores = np.where(np.arange(2000) % 10 == 0, 1.0, 0.0)  # 200 of the 1000 positives
    found = figures(a_model(positive, scores), single(2000), {})["pd"]
    assert found.value == 0.2
    assert (found.low, found.high) == pytest.approx(wilson_interval(200, 1000), abs=0.006)


def test_views_of_one_bag_count_once():
    """Four equal views of a bag tell no more than one, and less than four bags."""
    random = np.random.default_rng(3)
    positive = np.arange(200) % 2 == 0
    scores = random.normal(positive)
    views = np.repeat(np.arange(200), 4)

    def width(count: int, bags: Bootstrap) -> float:
        found = detection(np.repeat(positive, count), np.repeat(scores, count), bootstrap=bags)["auroc"]
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    once = width(1, single(200))
    assert width(4, Bootstrap(views)) == pytest.approx(once, rel=1e-9)
    assert width(4, single(800)) == pytest.approx(once / 2, rel=0.2)


def test_a_rate_of_all_or_none_has_wilsons_interval_of_its_bags():
    """No resample can tell how far from certain 50 detected bags of 4 views are."""
    positive = np.arange(400) < 200
    found = figures(a_model(positive, positive * 1.0), Bootstrap(np.arange(400) // 4, resamples=20), {})
    assert found["pd"] == Figure(1.0, *wilson_interval(50, 50))
    assert found["pfa"] == Figure(0.0, *wilson_interval(0, 50))
    assert found["auroc"] == Figure(1.0, None, None)


def test_intervals_follow_the_seed():
    random = np.random.default_rng(0)
    labels = random.random((300, 5)) < 0.2
    p = random.random((300, 5))
    first, again, other = (average_precisions(labels, p, single(300, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["map"].value == other["map"].value
    assert first["map"] != other["map"]


def test_bags_are_named_and_images_without_a_name_stand_alone():
    bags = Bootstrap.by_group(["a", "", "a", "b", ""])
    assert bags.group[0] == bags.group[2]
    assert len(set(bags.group.tolist())) == 4
    (weights,) = Bootstrap(bags.group, resamples=50).weights(np.array([True, False, False, False, False]))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == 1).all()  # the one bag with a threat is in every resample
    assert (weights[:, [1, 3, 4]].sum(axis=1) == 3).all()


# --- figures ---


def a_model(positive: np.ndarray, scores: np.ndarray) -> Predictions:
    """Give a model whose class scores are its anomaly score, and images that hold a gun or nothing."""
    labels = np.zeros((len(positive), 5), bool)
    labels[:, 0] = positive
    p = np.tile(scores[:, None], 5)
    return Predictions(labels, p, {"gbad": scores}, "gbad", 0.5, np.full(5, 0.5))


def test_what_has_no_examples_has_no_figures():
    scores = np.random.default_rng(0).random(60)
    found = figures(a_model(np.arange(60) % 2 == 0, scores), single(60, resamples=20), {})
    assert found["ap.knife"] == found["recall.knife"] == found["pd.knife"] == UNDEFINED
    assert found["map"] == found["ap.gun"]
    assert found["macro_f1"] == found["f1.gun"]
    benign = figures(a_model(np.zeros(60, bool), scores), single(60, resamples=20), {})
    assert benign["map"] == benign["auroc"] == benign["pd"] == benign["pd_at_test_pfa_05"] == UNDEFINED
    assert benign["pfa"].value == (scores >= 0.5).mean()
    threats = figures(a_model(np.ones(60, bool), scores), single(60, resamples=20), {})
    assert threats["auroc"] == threats["pfa"] == threats["ap.gun"] == UNDEFINED
    assert "map_gated_pfa_05" not in threats  # no benign image sets a gate


def test_an_image_without_a_score_is_a_miss_and_never_an_alarm():
    positive = np.arange(40) < 20
    scores = np.where(positive, 0.9, 0.1) + np.arange(40) / 1000
    whole = figures(a_model(positive, scores), single(40, resamples=20), {})
    assert whole["auroc"].value == whole["ap.gun"].value == whole["pd"].value == 1
    scores[:5] = np.nan
    lost = figures(a_model(positive, scores), single(40, resamples=20), {})
    assert lost["pd"].value == lost["recall.gun"].value == 0.75
    assert lost["auroc"].value == 0.75  # a lost threat ranks behind every benign image
    assert lost["ap.gun"].value == pytest.approx(0.75 + 0.25 * 0.5)
    assert lost["map_gated"].value == lost["ap.gun"].value


def test_a_gate_that_opens_for_all_changes_nothing():
    random = np.random.default_rng(0)
    labels = random.random((300, 5)) < 0.2
    model = Predictions(
        labels, random.random((300, 5)), {"gbad": np.zeros(300)}, "gbad", -1.0, np.full(5, 0.5)
    )
    found = figures(model, single(300, resamples=20), {})
    assert found["map_gated"] == found["map"]
    assert found["micro_f1_gated"] == found["micro_f1"]
    closed = figures(replace(model, threshold=1.0), single(300, resamples=20), {})
    assert closed["map_gated"] == closed["map"]
    assert closed["micro_f1_gated"].value == 0


# --- the command ---


Labels = dict[str, list[bool]]


@pytest.fixture(scope="module")
def labels() -> Labels:
    """Say what 80 images hold: every other one a threat or several."""
    random = np.random.default_rng(4)
    names = [f"{'NP'[i % 2]}{i:05d}" for i in range(80)]
    return {name: (random.random(5) < (0.35 if name[0] == "P" else 0)).tolist() for name in names}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, labels: Labels) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for name, pixels in zip(labels, tiny.pictures(len(labels), seed=2), strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    for name in ("P00001", "N00000"):  # cut short: a threat and a benign image without a score
        file = folder / f"{name}.png"
        file.write_bytes(file.read_bytes()[:200])
    (folder / "cut.tar").write_bytes(b"no archive")
    return folder


def scan(archive: Path, out: Path, bundle: Bundle, **options: Any) -> Path:
    Scan(ScanSettings(sources=(str(archive),), out=out, model=bundle.path, threads=1, **options)).run()
    return out


@pytest.fixture(scope="module")
def results(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scan(archive, tmp_path_factory.mktemp("results") / "results.parquet", tiny_bundle, pfa=0.25)


def write_labels(path: Path, labels: Labels) -> Path:
    lines = [[name, *(1 if held else -1 for held in row)] for name, row in labels.items()]
    return write_lines(path, [["name", *(threat.capitalize() for threat in THREATS)], *lines])


def write_lines(path: Path, lines: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


@pytest.fixture
def listed(tmp_path: Path, labels: Labels) -> Path:
    return write_labels(tmp_path / "labels.csv", labels)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def told(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_the_command_judges_a_scan(results: Path, listed: Path, labels: Labels, tiny_bundle: Bundle):
    found = told(results, "--labels", listed, "--model", tiny_bundle.path)
    images = [row for row in pq.read_table(results).to_pylist() if row["kind"] == "image"]
    rows = {Path(row["uri"]).stem: row for row in images}
    truth = np.array([labels[name] for name in rows])
    p = np.array([[row[f"p_{t}"] for t in THREATS] for row in rows.values()], dtype=float)
    score = np.array([row["anomaly_score"] for row in rows.values()], dtype=float)
    alarm = np.array([bool(row["anomalous"]) for row in rows.values()])
    positive = np.any(truth, axis=1)
    last = np.isnan(score)
    aps = [average_precision_score(truth[:, k], np.where(last, -1, p[:, k])) for k in range(5)]
    assert [found[f"ap.{name}"] for name in THREATS] == pytest.approx(aps)
    assert found["map"] == pytest.approx(np.mean(aps))
    assert found["auroc"] == pytest.approx(roc_auc_score(positive, np.where(last, -1e9, score)))
    assert (found["pd"], found["pfa"]) == pytest.approx((alarm[positive].mean(), alarm[~positive].mean()))
    predicted = p >= np.array(tiny.manifest()["operating_points"]["fp32"]["gbad"][1]["class_thresholds"])
    assert found["micro_f1"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    threats = np.array([[t in (row["threats"] or []) for t in THREATS] for row in rows.values()])
    assert found["macro_f1_gated"] == pytest.approx(f1_score(truth, threats, average="macro"))
    assert 0 < found["pfa"] < 1
    assert 0 < found["micro_f1_gated"] < found["micro_f1"]
    assert (found["pd_at_pfa_25"], found["pfa_measured_25"]) == (found["pd"], found["pfa"])
    for name, (low, high) in found["intervals"].items():
        assert low < high, name
        assert "_1_9" in name or low <= found[name] <= high, name  # AP at odds is skewed


def test_figures_of_other_decisions_are_those_of_their_own_scan(
    results: Path, archive: Path, listed: Path, tmp_path: Path, tiny_bundle: Bundle
):
    """Losses and logits are recomputed from the rows; a scan by that decision would have said the same."""
    found = told(results, "--labels", listed, "--model", tiny_bundle.path)
    for decision in ("classes", "combined"):
        out = scan(archive, tmp_path / f"{decision}.parquet", tiny_bundle, decision=decision, pfa=0.05)
        own = told(out, "--labels", listed)
        for name in ("auroc", "anomaly_ap", "pd_at_pfa_05", "pfa_measured_05", "pd_at_test_pfa_10"):
            assert found[f"{decision}.{name}"] == pytest.approx(own[name], abs=1e-9), name
        assert f"{decision}.pd_at_pfa_50" not in own  # the footer alone knows one operating point


def test_what_is_missing_is_counted_and_said(results: Path, tmp_path: Path, labels: Labels):
    some = {name: row for name, row in labels.items() if name < "P00050"}
    listed = write_labels(tmp_path / "some.csv", {name: [*row[:4], False] for name, row in some.items()})
    found = told(results, "--labels", listed)
    counts = found["counts"]
    assert (counts["rows"], counts["containers"]) == (81, 1)
    assert (counts["images"], counts["unlabelled"]) == (len(some), 80 - len(some))
    assert sum(counts["failed"].values()) == 2
    assert counts["failed_positive"] == sum(any(some[name][:4]) for name in ("N00000", "P00001"))
    assert sum(found["confusion"].values()) == len(some)
    assert found["ap.scissors"] is None
    said = " ".join(found["notes"])
    for part in (
        f"{80 - len(some)} images have a row and no label",
        "1 rows stand for folders or archives",
        "2 images have no score (truncated 2): they rank last and are no alarm",
        "No image holds scissors",
        "trained on synthetic images",
        "a small test",
        "no bags are named",
    ):
        assert part in said


def test_one_kind_of_images_is_said(results: Path, tmp_path: Path, labels: Labels):
    for kind, sentence in (("N", "No image holds a threat"), ("P", "Every image holds a threat")):
        chosen = {name: row for name, row in labels.items() if name[0] == kind and any(row) == (kind == "P")}
        found = told(results, "--labels", write_labels(tmp_path / f"{kind}.csv", chosen))
        assert found["auroc"] is None
        assert sentence in " ".join(found["notes"])
        assert run(results, "--labels", tmp_path / f"{kind}.csv", "--out", tmp_path / kind).exit_code == 0


def test_splits_of_the_labels_choose_and_validation_sets_thresholds(
    results: Path, tmp_path: Path, labels: Labels
):
    """One table names the test and the validation images of one scan, and their bags."""
    header = ["path", *THREATS, "split", "group"]
    lines = [
        [f"{name}.png", *map(int, row), "test" if i < 50 else "validation", f"bag{i // 4}"]
        for i, (name, row) in enumerate(labels.items())
    ]
    table = write_lines(tmp_path / "table.csv", [header, *lines])
    found = told(results, "--labels", table, "--validation", results)
    assert (found["counts"]["images"], found["counts"]["bags"]) == (50, 13)
    rows = {Path(row["uri"]).stem: row for row in pq.read_table(results).to_pylist()}
    names = list(labels)[50:]
    for k, threshold in enumerate(found["about"]["class_thresholds"]):
        truth = [labels[name][k] for name in names]
        p = np.array([rows[name][f"p_{THREATS[k]}"] for name in names])
        best = max(f1_score(truth, p >= each) for each in p)
        assert f1_score(truth, p >= threshold) == pytest.approx(best)
    assert "50 images" in run(results, "--labels", table).stdout


def test_names_to_ignore_are_left_out_of_a_second_set_of_figures(
    results: Path, listed: Path, tmp_path: Path, labels: Labels
):
    (tmp_path / "doubtful.txt").write_text("\nN00002\nN00010\n\nN99999\n")
    found = told(results, "--labels", listed, "--ignore", tmp_path / "doubtful.txt")
    rest = {name: row for name, row in labels.items() if name not in ("N00002", "N00010")}
    alone = told(results, "--labels", write_labels(tmp_path / "rest.csv", rest))
    assert found["counts"]["ignored"] == 2
    assert found["without_ignored"]["intervals"] == alone["intervals"]
    assert {name: alone[name] for name in found["without_ignored"]} == found["without_ignored"]
    assert found["pfa"] != found["without_ignored"]["pfa"]
    text = run(results, "--labels", listed, "--ignore", tmp_path / "doubtful.txt").stdout
    assert "without 2 images" in text


def test_the_folder_holds_what_the_command_says(
    results: Path, listed: Path, tmp_path: Path, tiny_bundle: Bundle
):
    out = tmp_path / "deep" / "figures"
    arguments = (results, "--labels", listed, "--model", tiny_bundle.path, "--out", out)
    assert told(*arguments) == json.loads((out / "metrics.json").read_text())
    assert run(*arguments).stdout == (out / "table.md").read_text()
    pictures = ("losses", "precision_recall", "reliability", "roc", "scores")
    assert sorted(path.name for path in out.glob("*.png")) == [f"{name}.png" for name in pictures]
    for path in out.glob("*.png"):
        colors = Image.open(path).convert("RGB").getcolors(1 << 20)
        assert colors is not None
        assert len(colors) > 50, path  # not an empty frame


def test_the_plane_of_losses_names_only_what_is_drawn(tmp_path: Path):
    benign, scores = np.zeros((9, 5), bool), np.linspace(0.1, 0.9, 9)
    predictions = Predictions(benign, np.full((9, 5), 0.1), {"gbad": scores}, "gbad", 0.95, np.full(5, 0.5))
    draw(tmp_path, predictions, (scores, scores), None)
    colors = Image.open(tmp_path / "losses.png").convert("RGB").getcolors(1 << 20)
    assert (0xD5, 0x5E, 0x00) not in {color for _, color in colors or []}  # that of threats


def test_the_table_is_markdown_of_equal_columns(results: Path, listed: Path, tiny_bundle: Bundle):
    blocks = run(results, "--labels", listed, "--model", tiny_bundle.path).stdout.split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 6
    for lines in tables:
        assert len({len(line) for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")
        assert len({line.count("|") for line in lines}) == 1


# --- refusals ---


def test_what_is_no_finished_results_file_is_refused(results: Path, listed: Path, tmp_path: Path):
    assert "absent.parquet does not exist" in refusal(tmp_path / "absent.parquet", "--labels", listed)
    assert "does not hold results of a scan" in refusal(listed, "--labels", listed)
    pq.write_table(pq.read_table(results).replace_schema_metadata(None), tmp_path / "other.parquet")
    assert "does not hold results of a scan" in refusal(tmp_path / "other.parquet", "--labels", listed)
    (tmp_path / "begun.parquet.parts").mkdir()
    assert "is not finished: run its scan again" in refusal(tmp_path / "begun.parquet", "--labels", listed)


def test_another_model_is_refused(results: Path, listed: Path, tmp_path: Path, tiny_bundle: Bundle):
    other = write_bundle(tmp_path / "other", {**tiny.manifest(), "name": "other"}, tiny.files())
    sentence = refusal(results, "--labels", listed, "--model", other.path)
    assert f"its hash is {other.hash[:12]}, and they come from 'tiny' {tiny_bundle.hash[:12]}" in sentence
    assert "is not a usable bundle" in refusal(results, "--labels", listed, "--model", tmp_path)


def test_labels_that_do_not_fit_are_refused(results: Path, tmp_path: Path, labels: Labels):
    more = write_labels(tmp_path / "more.csv", {**labels, "P99998": [True] * 5, "P99999": [True] * 5})
    assert "of 82 names, 2 have no image; the first is 'P99998'" in refusal(results, "--labels", more)
    assert "absent.csv does not exist" in refusal(results, "--labels", tmp_path / "absent.csv")
    lines = [[name, *map(int, row), "train"] for name, row in labels.items()]
    trained = write_lines(tmp_path / "trained.csv", [["name", *THREATS, "split"], *lines])
    assert "names no image of the split 'test'" in refusal(results, "--labels", trained)


def test_a_list_to_ignore_that_cannot_be_meant_is_refused(
    results: Path, listed: Path, tmp_path: Path, labels: Labels
):
    (tmp_path / "other.txt").write_text("X1\nX2\n")
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("other.txt", "empty.txt"):
        sentence = refusal(results, "--labels", listed, "--ignore", tmp_path / name)
        assert f"{name} names none of the 80 images" in sentence
    (tmp_path / "all.txt").write_text("\n".join(labels))
    assert "names all 80 images" in refusal(results, "--labels", listed, "--ignore", tmp_path / "all.txt")
    assert "absent.txt" in refusal(results, "--labels", listed, "--ignore", tmp_path / "absent.txt")


def test_thresholds_come_from_other_images_of_the_same_model(
    results: Path, archive: Path, listed: Path, tmp_path: Path
):
    sentence = refusal(results, "--labels", listed, "--validation-labels", listed)
    assert "give its results with --validation" in sentence
    sentence = refusal(results, "--labels", listed, "--validation", results)
    assert "80 images are both judged and in the validation" in sentence
    other = write_bundle(tmp_path / "other", {**tiny.manifest(), "name": "other"}, tiny.files())
    out = scan(archive, tmp_path / "other.parquet", other)
    sentence = refusal(results, "--labels", listed, "--validation", out)
    assert "come from different models" in sentence


def test_a_folder_that_cannot_be_is_refused(results: Path, listed: Path):
    assert "cannot be made (File exists)" in refusal(results, "--labels", listed, "--out", listed)


# --- real images ---


@pytest.mark.real
@pytest.mark.slow
def test_real_samples_are_judged_as_far_as_positives_allow(tmp_path: Path):
    data = os.environ.get("GBAD_REAL_DATA")
    if data is None:
        pytest.skip("GBAD_REAL_DATA is not set")
    samples = Path(data, "sixray-samples")
    out = tmp_path / "results.parquet"
    Scan(ScanSettings(sources=(str(samples),), out=out, threads=1)).run()
    found = evaluate(EvaluateSettings(results=out, labels=samples / "labels.csv", out=tmp_path / "out"))
    assert found.counts["images"] == found.counts["positive"] == 70
    assert found.figures["auroc"] == UNDEFINED
    assert found.figures["ap.gun"].value is not None  # other threats are negatives of a class
    assert any(note.startswith("Every image holds a threat") for note in found.notes)
