"""`gbad-batch drift`: shifts are found, as a whole, by folder and by day; chance and habit are no drift."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner
from PIL import Image
from scipy.stats import wasserstein_distance

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import MissingExtra, Refused
from gbad_batch.engine.rescreening import Drift, DriftSettings, drift, drifting
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import SCHEMA_VERSION, footer_metadata, results_schema
from gbad_batch.engine.row import THREATS

DAY = 86_400_000_000  # us
START = 1_700_000_000_000_000


def write(
    path: Path, figures: dict[str, Any], folders: Any = "/archive", days: Any = 0, **footer: Any
) -> Path:
    """Write the results of a scan with these figures; the others are those of one law."""
    n = len(next(iter(figures.values())))
    random = np.random.default_rng(n)
    folder, day = np.broadcast_to(folders, n), np.broadcast_to(days, n)
    columns: dict[str, Any] = {
        "uri": [f"{where}/bag{i:06d}.jpg" for i, where in enumerate(folder.tolist())],
        "kind": ["image"] * n,
        "status": ["ok"] * n,
        "mtime": START + DAY * day.astype(np.int64),
        "anomalous": [False] * n,
        **{f"p_{threat}": random.uniform(0.01, 0.5, n) for threat in THREATS},
        "typicality": random.uniform(1, 3, n),
        **figures,
    }
    schema = results_schema()
    arrays = [pa.array(columns.get(each.name, [None] * n), each.type, from_pandas=True) for each in schema]
    point = {"decision": "gbad", "precision": "fp32", "pfa": 0.05, "threshold": 1.0}
    point |= {"class_thresholds": [0.5] * 5, "interval": None, "supported": True}
    content = {
        "scan_id": path.name, "fingerprint": {}, "runs": [], "schema": SCHEMA_VERSION, "bundle": "made up",
        "bundle_hash": "0" * 64, "demo": True, "backend": "none", "precision": "fp32",
        "operating_point": point, "rows": n, "images": n, "containers": 0, "gone": 0, "replaced": 0,
    }  # fmt: skip
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    write_parquet(path, schema, [batch], footer_metadata(content | footer))
    return path


def drawn(n: int, seed: int, shift: Any = 0.0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "anomaly_score": random.normal(size=n) + shift,
        "reconstruction_loss": np.exp(random.normal(size=n)),
        "feature_matching_loss": random.gamma(2, size=n),
        "largest_logit": random.standard_t(4, n),
    }


def compared(baseline: Path, current: Path, **options: Any) -> Drift:
    return drift(DriftSettings(baseline=baseline, current=current, **options))


def test_a_shift_is_found_and_named_first(tmp_path: Path):
    baseline = write(tmp_path / "a", drawn(3000, 1))
    found = compared(baseline, write(tmp_path / "b", drawn(2000, 2, shift=0.3)))
    assert (found.verdict, found.images) == ("drift", (3000, 2000))
    assert found.sentence.startswith("drift, slight: the images of CURRENT differ from those of BASELINE")
    first, *others = found.shifts
    assert first.figure == "anomaly_score"
    assert first.moved == pytest.approx(0.3, abs=0.06)
    assert first.distance == pytest.approx(0.3, abs=0.06)
    assert all(other.excess < 1 for other in others)
    far = compared(baseline, write(tmp_path / "c", drawn(2000, 3, shift=1.5)))
    assert far.size == "large"


def test_another_width_is_drift_though_the_mean_stays(tmp_path: Path):
    wide = drawn(3000, 2)
    wide["anomaly_score"] *= 1.3
    found = compared(write(tmp_path / "a", drawn(3000, 1)), write(tmp_path / "b", wide))
    assert (found.verdict, found.shifts[0].figure) == ("drift", "anomaly_score")


@pytest.mark.slow
def test_random_splits_are_no_drift(tmp_path: Path):
    whole, random = drawn(2000, 5), np.random.default_rng(6)
    verdicts = []
    for _ in range(20):
        order = random.permutation(2000)
        paths = [
            write(tmp_path / str(k), {name: values[half] for name, values in whole.items()})
            for k, half in enumerate((order[:1200], order[1200:]))
        ]
        verdicts.append(compared(*paths).verdict)
    assert verdicts.count("none") >= 19


def test_distances_of_bins_are_those_of_scipy():
    random = np.random.default_rng(1)
    values = random.normal(size=(4000, 2)).astype(np.float32)
    bins = drifting._Bins(values)
    halves = [bins.histogram(bins.codes(half)) for half in (values[:1500], values[1500:] + 0.2)]
    index, distance = bins.distances(*halves)
    for k in range(2):
        exact = wasserstein_distance(values[:1500, k], values[1500:, k] + 0.2) / values[:, k].std()
        assert distance[k] == pytest.approx(exact, rel=0.05)
        places = bins.places[k]
        weighted = wasserstein_distance(places, places, halves[0][k], halves[1][k]) / bins.std[k]
        assert distance[k] == pytest.approx(weighted, rel=1e-6)
    edges = np.quantile(values[:, 0], np.linspace(0, 1, 11)[1:-1])
    p, q = (
        np.bincount(np.searchsorted(edges, half, "right"), minlength=10) / len(half)
        for half in (values[:1500, 0], values[1500:, 0] + 0.2)
    )
    assert index[0] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=0.05)


# --- folders and days ---


def test_a_folder_that_drifts_is_named_though_the_whole_does_not(tmp_path: Path):
    folders = np.array([f"/archive/lane{k % 10}" for k in range(6000)])
    shift = np.where(folders == "/archive/lane3", 1.0, 0.0)
    baseline = write(tmp_path / "a", drawn(6000, 1), folders)
    found = compared(baseline, write(tmp_path / "b", drawn(6000, 2, shift), folders), top=3)
    first, second, _ = found.groups
    assert (first.kind, first.name, first.drift) == ("folder", "/archive/lane3/", True)
    assert (first.images, first.against) == (600, 600)
    assert not second.drift
    assert found.verdict == "drift"
    assert found.tested == 10
    shift = np.where(folders == "/archive/lane3", 0.45, 0.0)
    found = compared(baseline, write(tmp_path / "c", drawn(6000, 3, shift), folders))
    assert "/archive/lane3/" in found.sentence
    assert found.shifts[0].excess < 1 < found.groups[0].worst.excess


def test_a_lane_is_compared_with_itself(tmp_path: Path):
    folders = np.array([f"/archive/lane{k % 4}" for k in range(4000)])
    habit = np.where(folders == "/archive/lane3", 2.0, 0.0)
    paths = [write(tmp_path / str(k), drawn(4000, k, habit), folders) for k in (1, 2)]
    assert compared(*paths).verdict == "none"


def test_what_differs_from_day_to_day_is_no_drift_where_many_days_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    random = np.random.default_rng(3)
    days, tonight = np.repeat(np.arange(60), 100), np.full(100, 60)
    level = random.normal(0, 0.5, 61)
    level[60] = 0.6
    baseline = write(tmp_path / "a", drawn(6000, 1, level[days]), days=days)
    current = write(tmp_path / "b", drawn(100, 2, level[tonight]), days=tonight)
    found = compared(baseline, current)
    assert (found.verdict, found.blocks) == ("none", 60)
    monkeypatch.setattr(drifting, "FEWEST_BLOCKS", 1000)
    found = compared(baseline, current)
    assert (found.verdict, found.blocks) == ("drift", 0)
    assert "counts as drift" in found.notes[0]
    monkeypatch.undo()
    stranger = write(tmp_path / "c", drawn(100, 2, 4.0), days=tonight)
    assert compared(baseline, stranger).verdict == "drift"


def test_days_are_those_of_the_files(tmp_path: Path):
    days = np.arange(3000) % 3
    shift = np.where(days == 2, 1.0, 0.0)
    baseline = write(tmp_path / "a", drawn(3000, 1))
    found = compared(baseline, write(tmp_path / "b", drawn(3000, 2, shift), days=days))
    (day,) = [group.name for group in found.groups if group.drift and group.kind == "day"]
    assert day == "2023-11-16"
    assert found.groups[0].against == 3000  # the baseline knows no such day


def test_figures_that_a_model_does_not_give_and_ties_are_left_out_of_it(tmp_path: Path):
    plain: dict[str, Any] = {"typicality": [None] * 1000, "p_gun": np.full(1000, 0.25)}
    paths = [write(tmp_path / str(k), drawn(1000, k) | plain) for k in (1, 2)]
    found = compared(*paths)
    assert found.verdict == "none"
    assert "typicality" not in [shift.figure for shift in found.shifts]
    json.dumps(found.to_json(), allow_nan=False)


# --- features ---


@pytest.fixture(scope="module")
def scans(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root, made = tmp_path_factory.mktemp("scans"), {}
    for name, seed, dark in (("one", 1, 0), ("two", 2, 0), ("dark", 3, 60)):
        (root / name).mkdir()
        for k, picture in enumerate(tiny.pictures(220, seed=seed)):
            Image.fromarray(np.clip(picture, dark, 255)).save(root / name / f"{k:03d}.png")
        made[name] = root / f"{name}.parquet", root / f"{name}.features"
        out, features = made[name]
        settings = ScanSettings(sources=(root / name,), out=out, features=features, model=tiny_bundle.path)
        Scan(settings).run()
    return made


def test_a_classifier_tells_features_apart(scans: dict[str, tuple[Path, Path]]):
    def found(other: str) -> Drift:
        (baseline, first), (current, second) = scans["one"], scans[other]
        return compared(baseline, current, features=(first, second))

    same, dark = found("two").features, found("dark").features
    assert same is not None
    assert dark is not None
    assert not same.drift
    assert dark.drift
    assert dark.auroc > 0.8


def test_features_of_nothing_are_refused(scans: dict[str, tuple[Path, Path]], tmp_path: Path):
    (baseline, first), (current, _) = scans["one"], scans["two"]
    for bad in (tmp_path, baseline):
        with pytest.raises(Refused, match="does not hold the features of a finished scan"):
            compared(baseline, current, features=(first, bad))


# --- the command ---


def test_the_command_says_one_plain_sentence_first(tmp_path: Path):
    folders = np.array(["/archive/\x1b[31mred", "/archive/b"] * 1000)
    baseline = write(tmp_path / "a", drawn(2000, 1), folders)
    current = write(tmp_path / "b", drawn(2000, 2, 0.5), folders)
    run = CliRunner().invoke
    done = run(main, ["drift", str(baseline), str(current)])
    assert done.exit_code == 0
    assert done.output.startswith("drift, moderate: ")
    assert "\x1b" not in done.output
    assert "anomaly_score  *" in done.output
    done = run(main, ["drift", str(baseline), str(current), "--json"])
    assert json.loads(done.output)["verdict"] == "drift"
    done = run(main, ["drift", str(baseline), str(baseline)])
    assert done.output.startswith("none: 2000 images of CURRENT")


def test_what_cannot_be_compared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    baseline = write(tmp_path / "a", drawn(200, 1))
    other = write(tmp_path / "b", drawn(200, 2), bundle_hash="1" * 64)
    with pytest.raises(Refused, match="another model"):
        compared(baseline, other)
    point = {"decision": "classes", "precision": "fp32", "pfa": 0.05, "threshold": 1.0}
    point |= {"class_thresholds": [0.5] * 5, "interval": None, "supported": True}
    other = write(tmp_path / "c", drawn(200, 2), operating_point=point)
    with pytest.raises(Refused, match="decide --decision gbad"):
        compared(baseline, other)
    with pytest.raises(Refused, match="holds 99 images with a score"):
        compared(baseline, write(tmp_path / "d", drawn(99, 2)))
    with pytest.raises(Refused, match="does not exist"):
        compared(baseline, tmp_path / "absent")
    with pytest.raises(Refused, match="--top -1"):
        replace(DriftSettings(baseline=baseline, current=baseline), top=-1)
    monkeypatch.setattr(drifting, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="SciPy"):
        compared(baseline, baseline)
