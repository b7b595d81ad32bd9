"""Typicality: what looks like nothing a model has seen is told apart, by the image alone, in every output."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import tiny_bundle as tiny
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load, save

from gbad_batch.engine import Model, Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.commands.console import summary_text
from gbad_batch.engine.errors import BundleError
from gbad_batch.engine.model.typicality import Typicality
from gbad_batch.engine.synth import SynthSettings, write_archive
from gbad_batch.engine.training.packing.familiarity import BEYOND, FEWEST, fit_typicality

D, K = 24, 5


def some(k: int = K, seed: int = 0) -> Typicality:
    random = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(random.normal(size=(D, D)))
    return Typicality(
        mean=random.normal(size=D).astype(np.float32),
        directions=np.ascontiguousarray(directions[:, :k].T, np.float32),
        variances=random.uniform(1, 9, k).astype(np.float32),
        rest=np.array([0.5], np.float32),
        limit=np.array([1.25], np.float32),
    )


def features(n: int, seed: int = 1, d: int = D) -> np.ndarray:
    """Draw features of one multivariate normal distribution."""
    mix = np.random.default_rng(7).normal(size=(d, d)) / np.arange(1, d + 1)
    return (np.random.default_rng(seed).normal(size=(n, d)) @ mix.T + 2).astype(np.float32)


def test_it_is_the_limit_over_mahalanobis_distance():
    typicality, x = some(), features(9)
    directions = typicality.directions.astype(np.float64)
    covariance = directions.T @ np.diag(typicality.variances - 0.5) @ directions + 0.5 * np.eye(D)
    centred = (x - typicality.mean).astype(np.float64)
    squared = np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred)
    np.testing.assert_allclose(typicality.of(x), 1.25 / np.sqrt(squared / D), rtol=1e-5)
    assert typicality.of(typicality.mean[None])[0] == pytest.approx(1e6)


@pytest.mark.parametrize("k", [1, 5, 24])
def test_no_batch_changes_a_bit_of_it(k: int):
    typicality, x = some(k), features(300)
    whole = typicality.of(x)
    for size in (1, 2, 3, 7, 64, 255):
        parts = [typicality.of(x[start : start + size]) for start in range(0, len(x), size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(typicality.of(x[::-1])[::-1], whole)
    assert np.array_equal(typicality.of(np.asfortranarray(x)), whole)


def test_a_fit_leaves_its_share_of_new_images_beyond_the_limit_and_strangers_too():
    fitted = fit_typicality(features(2000))
    assert fitted is not None
    typicality, told = fitted
    assert told["images"] == 2000
    beyond = (typicality.of(features(20_000, seed=3)) < 1).mean()
    assert BEYOND / 2 < beyond < 2 * BEYOND
    strangers = np.random.default_rng(4).normal(2, 3, (500, D)).astype(np.float32)
    assert (typicality.of(strangers) < 1).all()


def test_too_few_images_give_none(caplog: pytest.LogCaptureFixture):
    assert fit_typicality(features(FEWEST - 1)) is None
    assert f"fewer than the {FEWEST}" in caplog.text
    assert fit_typicality(features(FEWEST, d=200)) is not None  # fewer images than features


# --- bundles and scans ---


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures that a bundle shall know, and arrays of others."""
    folder = tmp_path_factory.mktemp("known")
    for k, picture in enumerate(tiny.pictures(FEWEST, seed=21)):
        Image.fromarray(picture).save(folder / f"{k:03d}.png")
    np.save(folder / "more.npy", tiny.pictures(60, seed=22))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def knowing(known: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "knowing"
    words = ["typicality", tiny_bundle.path, "--images", known, "--out", out]
    done = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    bundle = Bundle.read(out)
    assert f"by {FEWEST + 60} others; its hash is {bundle.hash[:12]}" in done.output
    return bundle


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for k, picture in enumerate(tiny.pictures(20, seed=23)):
        Image.fromarray(picture).save(folder / f"bag{k:02d}.png")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(folder / "red.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_only_weights_card_and_provenance_of_the_bundle_change(tiny_bundle: Bundle, knowing: Bundle):
    same = set(tiny_bundle.files) - {"weights.safetensors", "README.md"}
    assert all(knowing.files[name] == tiny_bundle.files[name] for name in same)
    before, after = tiny_bundle.tensors(), knowing.tensors()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert knowing.typicality() is not None
    assert tiny_bundle.typicality() is None
    assert knowing.hash != tiny_bundle.hash
    assert knowing.trunk("fp32") == tiny_bundle.trunk("fp32")
    assert knowing.manifest.operating_points == tiny_bundle.manifest.operating_points
    assert f"Fitted on {FEWEST + 60} images" in knowing.files["README.md"].decode()


def test_once_more_replaces_it_and_too_few_are_refused(known: Path, knowing: Bundle, tmp_path: Path):
    run = CliRunner().invoke
    words = ["typicality", str(knowing.path), "--images", str(known), "--out", str(tmp_path / "again")]
    assert run(main, words).exit_code == 0
    again = Bundle.read(tmp_path / "again")
    assert again.files == knowing.files
    (tmp_path / "few").mkdir()
    shutil.copy(known / "001.png", tmp_path / "few")
    words = ["typicality", str(knowing.path), "--images", str(tmp_path / "few"), "--out", str(tmp_path / "b")]
    refused = run(main, words)
    assert refused.exit_code == 2
    assert f"only 1 images can be decoded, and typicality takes {FEWEST}" in refused.output
    assert not (tmp_path / "b").exists()


def test_a_scan_tells_it_in_rows_summary_json_and_report(archive: Path, knowing: Bundle, tmp_path: Path):
    out, folder = tmp_path / "r.parquet", tmp_path / "features"
    scan = Scan(ScanSettings(sources=(archive,), out=out, features=folder, model=knowing.path))
    summary = scan.run()
    rows = {Path(row["uri"]).name: row for row in pq.read_table(out).to_pylist()}
    typicality = knowing.typicality()
    assert typicality is not None
    x = np.array(pq.read_table(folder)["x"].to_pylist(), np.float32)  # float16 in the file
    found = [row["typicality"] for row in rows.values() if row["status"] == "ok"]
    np.testing.assert_allclose(found, typicality.of(x), rtol=0.02)
    assert rows["broken.jpg"]["typicality"] is None
    assert rows["red.png"]["typicality"] < 1
    strange = sum(each < 1 for each in found)
    assert summary.atypical == strange
    assert summary.to_json()["atypical"] == strange
    assert "like nothing the model has seen" in summary_text(summary)
    words = ["report", str(out), "--model", str(knowing.path), "--out", str(tmp_path / "r.html")]
    assert CliRunner().invoke(main, words).exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert f'"atypical":{strange}' in page
    with Model.open(knowing.path) as model:
        (row,) = model.score([archive / "red.png"])
    assert row.typicality == rows["red.png"]["typicality"]


def test_a_bundle_without_it_gives_null(archive: Path, tiny_bundle: Bundle, tmp_path: Path):
    out = tmp_path / "r.parquet"
    summary = Scan(ScanSettings(sources=(archive,), out=out, model=tiny_bundle.path)).run()
    assert pq.read_table(out)["typicality"].null_count == 22
    assert summary.atypical is None
    assert "nothing the model has seen" not in summary_text(summary)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"typicality.variances": np.zeros(8, np.float32)}, "unusable"),
        ({"typicality.rest": np.zeros(1, np.float32)}, "divide by zero"),
        ({"typicality.limit": np.full(1, -1, np.float32)}, "divide by zero"),
        ({"typicality.mean": np.zeros(31, np.float32)}, "is not of 32 features"),
        ({"typicality.mean": np.zeros(32, np.float64)}, "unusable"),
        ({"typicality.directions": np.full((31, 32), 1e38, np.float32)}, "unusable"),
        ({"typicality.other": np.zeros(1, np.float32)}, "are not mean, directions"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unusable_arrays_are_refused(
    knowing: Bundle, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    weights = save(load(knowing.files["weights.safetensors"]) | change)
    with pytest.raises(BundleError, match=said):
        write_bundle(
            tmp_path / "b",
            knowing.manifest.document(),
            {**knowing.files, "weights.safetensors": weights},
        )


@pytest.mark.slow
def test_the_default_bundle_tells_photographs_from_bags(tmp_path: Path):
    data = pytest.importorskip("skimage.data")
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(getattr(data, name)()))
    write_archive(tmp_path / "bags", SynthSettings(8, 77, 0.5, looks=("white", "grey")))
    sources = (tmp_path / "photos", tmp_path / "bags" / "images")
    rows = list(Scan(ScanSettings(sources=sources)).rows())
    found: dict[str, list[float]] = {"photos": [], "images": []}
    for row in rows:
        found[Path(row.uri).parent.name].append(row.typicality or 0)
    photos, bags = (np.sort(values) for values in found.values())
    assert photos[-1] < bags[1]  # every photograph is stranger than all bags but one
    assert sum(photos < 1) >= 2
    assert sum(bags < 1) <= 1


def test_the_figures_of_a_summary_are_json(archive: Path, knowing: Bundle, tmp_path: Path):
    words = ["scan", str(archive), "--out", str(tmp_path / "r"), "--model", str(knowing.path), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 3
    assert json.loads(done.stdout)["atypical"] >= 1
