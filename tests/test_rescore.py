"""`gbad-batch rescore`: stored features give the rows of a scan with another BiGAN and decision."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from killing import die_at
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from safetensors.numpy import load, save
from written import footer_of, rows_of

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, pack_gate, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.rescreening import Rescored, RescoreSettings, decide, rescore
from gbad_batch.engine.rescreening.deciding import DecideSettings
from gbad_batch.engine.results.schema import FOOTER_KEY, SCORED_COLUMNS
from gbad_batch.engine.training.packing.familiarity import fit_typicality

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
TOLERANCE = 0.01  # of the bundle, relative, of a loss
FIGURES = [name for name in SCORED_COLUMNS if name not in ("anomalous", "threats")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Make a bundle of the same network with another BiGAN, another SVM, and a typicality."""
    graph = onnx.load_from_string(tiny.bigan())
    for tensor in graph.graph.initializer:
        if tensor.name == "bigan.generator.half":
            changed = numpy_helper.to_array(tensor)[::-1] * np.float16(2)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    bigan = graph.SerializeToString(deterministic=True)
    gate = Bundle.read(write_bundle_at(tmp_path_factory.mktemp("plain"))).gate()
    x = tiny.reference(tiny.pictures(200, seed=9))["x"]
    images = [np.asarray(Image.open(_file(image))) for image in gate.images]
    found = tiny.reference(np.stack(images))
    losses = ReferenceEvaluator(bigan).run(None, {"x": found["x"]})
    arrays = load(tiny.files()["weights.safetensors"])
    arrays["decision.gbad.weights"] = np.array([2.0, 0.5])
    fitted = fit_typicality(x)
    assert fitted is not None
    arrays |= fitted[0].tensors()
    files = tiny.files() | {
        "bigan.onnx": bigan,
        "weights.safetensors": save(arrays),
        "gate.tar": pack_gate(gate.images, *losses, found["logits"]),  # type: ignore[misc]
    }
    return write_bundle(tmp_path_factory.mktemp("other") / "b", {**tiny.manifest(), "name": "other"}, files)


def write_bundle_at(folder: Path) -> Path:
    return write_bundle(folder / "b", tiny.manifest(), tiny.files()).path


def _file(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def write_bags(folder: Path, count: int, seed: int, prefix: str = "bag") -> None:
    for i, picture in enumerate(tiny.pictures(count, seed=seed)):
        Image.fromarray(picture).save(folder / f"{prefix}{i:02d}.png")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    write_bags(root, 70, 3)
    (root / "bag30 broken.jpg").write_bytes(b"no picture")
    (root / "bag31 empty.png").touch()
    return root


@pytest.fixture(scope="module")
def scanned(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scan the archive; returns results and features. Each scan is made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def scan(end: str = "", **options: Any) -> tuple[Path, Path]:
        name = f"{options}{end}"
        if name not in made:
            folder = tmp_path_factory.mktemp("scanned")
            settings = {"sources": (archive,), "model": tiny_bundle.path, **options}
            Scan(ScanSettings(**settings, out=f"{folder / 'r'}{end}", features=folder / "f")).run()
            made[name] = folder / "r", folder / "f"
        return made[name]

    return scan


def rescored(scan: tuple[Path, Path], out: Path | str, bundle: Bundle, **options: Any) -> Rescored:
    results, features = scan
    given = {"results": results, "features": features, "out": out, "model": bundle.path}
    return rescore(RescoreSettings(**{**given, **options}))


def assert_alike(found: pa.Table, wanted: pa.Table, threshold: float) -> None:
    """Check rows against those of a scan, within the bundle's tolerance."""
    assert found.schema.equals(wanted.schema)
    assert found.drop_columns(SCORED_COLUMNS).equals(wanted.drop_columns(SCORED_COLUMNS))
    for name in FIGURES:
        own, scan = (table[name].to_numpy().astype(np.float64) for table in (found, wanted))
        assert np.array_equal(np.isnan(own), np.isnan(scan))
        if name in ("reconstruction_loss", "feature_matching_loss"):
            np.testing.assert_allclose(own, scan, rtol=TOLERANCE)
        elif name == "typicality":
            np.testing.assert_allclose(own, scan, rtol=0.02)
        else:
            np.testing.assert_allclose(own, scan, atol=0.1 * float(np.nanstd(scan)))
    near = np.abs(wanted["anomaly_score"].to_numpy() - threshold) < 0.1 * np.nanstd(
        wanted["anomaly_score"].to_numpy()
    )
    for name in ("anomalous", "threats"):
        pairs = zip(found[name].to_pylist(), wanted[name].to_pylist(), near, strict=True)
        assert all(own == scan for own, scan, close in pairs if not close)


def refusal(scan: tuple[Path, Path], out: Path | str, bundle: Bundle, **options: Any) -> str:
    """Say why nothing is scored; what stood before stands still, and nothing is beside it."""
    parent = Path(out).parent
    before = sorted((path, path.stat().st_mtime_ns) for path in parent.rglob("*"))
    with pytest.raises(Refused) as caught:
        rescored(scan, out, bundle, **options)
    assert sorted((path, path.stat().st_mtime_ns) for path in parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{}, {"pfa": 0.25}, {"threshold": 0.5}, {"decision": "combined"}, {"decision": "classes", "pfa": 0.5}],
    ids=str,
)
def test_it_gives_the_rows_of_a_scan_with_the_other_bundle(
    scanned: Any, other: Bundle, tmp_path: Path, options: dict[str, Any]
) -> None:
    out = tmp_path / "new.parquet"
    figures = rescored(scanned(), out, other, **options)
    scan, _ = scanned(model=other.path, **options)
    footer, own = footer_of(scan), footer_of(out)
    assert_alike(rows_of(out), rows_of(scan), footer["operating_point"]["threshold"])
    same = ("operating_point", "bundle", "bundle_hash", "demo", "use", "trunk", "precision", "rows")
    assert {name: own[name] for name in same} == {name: footer[name] for name in same}
    told = ("model", "decision", "pfa", "threshold", "point", "schema")
    assert {k: own["fingerprint"].get(k) for k in told} == {k: footer["fingerprint"].get(k) for k in told}
    assert own["scan_id"] == footer_of(scanned()[0])["scan_id"]
    first, last = own["runs"]
    assert [first] == footer_of(scanned()[0])["runs"]
    assert (last["command"], last["before"]["bundle"]) == ("rescore", "tiny")
    assert (figures.rows, figures.scored) == (72, 70)
    assert figures.raised - figures.cleared == figures.alarms - figures.alarms_before


def test_the_same_bundle_gives_nearly_the_same_rows(scanned: Any, tiny_bundle: Bundle, tmp_path: Path):
    results, _ = scanned()
    rescored(scanned(), tmp_path / "new", tiny_bundle)
    threshold = footer_of(results)["operating_point"]["threshold"]
    assert_alike(rows_of(tmp_path / "new"), rows_of(results), threshold)
    assert rows_of(tmp_path / "new")["typicality"].null_count == 72  # this bundle has none


def test_a_folder_of_parts_gives_a_folder_of_parts(scanned: Any, other: Bundle, tmp_path: Path):
    rescored(scanned("/"), f"{tmp_path}/new/", other)
    rescored(scanned(), tmp_path / "file", other)
    assert rows_of(tmp_path / "new").equals(rows_of(tmp_path / "file"))
    assert footer_of(tmp_path / "new")["bundle_hash"] == other.hash


def test_what_was_decided_again_and_updated_is_rescored_and_updated_further(
    tiny_bundle: Bundle, other: Bundle, tmp_path: Path
):
    (tmp_path / "bags").mkdir()
    write_bags(tmp_path / "bags", 12, 5, "m")
    out = tmp_path / "r.parquet"
    options: dict[str, Any] = {"sources": (tmp_path / "bags",), "out": out, "features": tmp_path / "f"}
    Scan(ScanSettings(**options, model=tiny_bundle.path)).run()
    write_bags(tmp_path / "bags", 9, 6, "a")  # before the others in order, and behind them among features
    (tmp_path / "bags" / "m03.png").unlink()
    Scan(ScanSettings(**options, model=tiny_bundle.path, update=True)).run()
    scan = out, tmp_path / "f"
    decide(DecideSettings(results=out, out=out, model=tiny_bundle.path, pfa=0.25, overwrite=True))
    rescored(scan, out, other, overwrite=True)
    assert footer_of(out)["operating_point"]["pfa"] == 0.25
    write_bags(tmp_path / "bags", 3, 7, "z")
    summary = Scan(ScanSettings(**options, model=other.path, pfa=0.25, update=True)).run()
    assert (summary.new, summary.kept) == (3, 20)
    whole = {"sources": options["sources"], "out": tmp_path / "w"}
    Scan(ScanSettings(**whole, model=other.path, pfa=0.25)).run()
    threshold = footer_of(out)["operating_point"]["threshold"]
    assert_alike(rows_of(out), rows_of(tmp_path / "w"), threshold)
    rescored(scan, tmp_path / "again", other)  # features of old and new images


def test_the_command_says_what_changed(scanned: Any, other: Bundle, tmp_path: Path):
    results, features = scanned()
    words = ["rescore", features, "--results", results, "--model", other.path, "--out"]
    line = [COMMAND, *map(str, words)]
    ran = subprocess.run([*line, str(tmp_path / "a")], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("tiny (")
    assert "72 rows: 70 scored" in ran.stdout
    ran = subprocess.run([*line, str(tmp_path / "b"), "--json"], capture_output=True, text=True)
    assert json.loads(ran.stdout)["model"].startswith("other (")
    assert rows_of(tmp_path / "a").equals(rows_of(tmp_path / "b"))


# --- refusals ---


def test_what_does_not_belong_together_is_refused(scanned: Any, archive: Path, other: Bundle, tmp_path: Path):
    (tmp_path / "out").mkdir()
    out, (results, features) = tmp_path / "out" / "new", scanned()
    trunk = write_bundle(tmp_path / "trunk", tiny.mapped_manifest(), tiny.mapped_files())
    assert "has another network than the one" in refusal(scanned(), out, trunk)
    assert "holds the features of another scan" in refusal((results, scanned(pfa=0.25)[1]), out, other)
    assert "does not hold the features of a finished scan" in refusal((results, archive), out, other)
    assert "does not hold the features of a finished scan" in refusal((results, results), out, other)
    assert "does not exist" in refusal((tmp_path / "absent", features), out, other)
    assert "by a threshold of your own" in refusal(scanned(threshold=0.5), out, other)
    assert "is not a usable bundle" in refusal(scanned(), out, other, model=archive)
    assert "exclude each other" in refusal(scanned(), out, other, threshold=1.0, pfa=0.2)
    out.write_text("mine")
    assert "add --overwrite" in refusal(scanned(), out, other)


def test_an_image_without_features_is_named(scanned: Any, other: Bundle, tmp_path: Path):
    results, features = scanned()
    copied = tmp_path / "in" / "f"
    copied.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for path in features.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (part,) = copied.glob("features-*.parquet")
    pq.write_table(pq.read_table(part).slice(0, 69), part)
    message = refusal((results, copied), tmp_path / "out" / "new", other)
    assert "lacks features of images in" in message
    assert "bag69.png" in message


def test_a_trunk_that_was_not_stored_is_refused(scanned: Any, other: Bundle, tmp_path: Path):
    results, features = scanned()
    copied = tmp_path / "in" / "f"
    copied.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for path in features.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    footer = footer_of(features)
    del footer["trunk"]
    schema = pq.read_schema(copied / "_common_metadata")
    empty = schema.empty_table().replace_schema_metadata({FOOTER_KEY: json.dumps(footer)})
    pq.write_table(empty, copied / "_common_metadata")
    assert "has another network" in refusal((results, copied), tmp_path / "out" / "new", other)


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_written(
    scanned: Any, other: Bundle, tmp_path: Path
):
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    results, features = scanned()
    words = ["rescore", features, "--results", results, "--model", other.path, "--out", tmp_path / "new"]
    ran = subprocess.run(
        [COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        preexec_fn=full,
    )
    assert ran.returncode == 2, ran.stderr
    assert "cannot be written: File too large; nothing was written" in ran.stderr
    assert list(tmp_path.iterdir()) == []


# --- kills ---


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "/"])
def test_killed_before_any_change_it_leaves_the_old_or_the_new(
    scanned: Any, tiny_bundle: Bundle, other: Bundle, tmp_path: Path, end: str
):
    results, features = scan = scanned(end)
    out = tmp_path / "new"
    rescored(scan, f"{out}{end}", tiny_bundle)
    old = rows_of(out)
    given = {"results": str(results), "features": str(features), "model": str(other.path)}
    order = json.dumps({**given, "out": f"{out}{end}", "overwrite": True})
    number = 0
    while (
        died := subprocess.run([sys.executable, __file__, order, str(number)], capture_output=True, text=True)
    ).returncode != 0:
        assert died.returncode == -signal.SIGKILL, died.stderr
        if out.exists():  # a folder that is being replaced stands aside until the next command
            bundle = footer_of(out)["bundle_hash"]
            assert rows_of(out).equals(old) == (bundle == tiny_bundle.hash)
        rescored(scan, f"{out}{end}", tiny_bundle, overwrite=True)
        assert rows_of(out).equals(old)
        assert [path.name for path in tmp_path.iterdir()] == ["new"]
        number += 1
    assert number >= 5
    assert footer_of(out)["bundle_hash"] == other.hash


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    settings = RescoreSettings(
        **{**given, "results": Path(given["results"]), "features": Path(given["features"])}
    )
    die_at(int(sys.argv[2]))
    rescore(settings)
