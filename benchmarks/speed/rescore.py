"""How fast stored features are scored again, with BiGAN and SVM, and how near a scan that comes."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.rescreening import RescoreSettings, rescore
from gbad_batch.engine.results.parts import read_parquet, write_parquet
from gbad_batch.engine.results.schema import (
    COMMON_METADATA,
    KEY_COLUMNS,
    columns_of,
    features_schema,
    features_to_batch,
    footer_metadata,
    read_footer,
)
from gbad_batch.engine.row import THREATS

from ..archives import bags
from ..made_up_results import write_results
from ..report import Report

IMAGES = 100_000
PICTURES = 200  # that are scanned and scored again
LEAST_IMAGES_PER_S = 20_000


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many images have features."""
    parser.add_argument("--features", type=int, default=IMAGES, metavar="N", help="images with features")
    parser.add_argument("--pictures", type=int, default=PICTURES, metavar="N", help="bags for the parity")


def run(arguments: argparse.Namespace) -> Report:
    """Score made-up features again on all cores, and real ones beside a scan."""
    report = Report("Features scored again by the default bundle, on all cores, start-up included")
    bundle = Bundle.read(default_bundle_path())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        results = write_results(folder / "results", arguments.features)
        features = _made_up_features(folder / "features", results, bundle)
        size = sum(path.stat().st_size for path in features.iterdir())
        began = time.perf_counter()
        _rescored(results, features, folder / "new", bundle)
        seconds = time.perf_counter() - began
        report.add("rescore_images_per_s", arguments.features / seconds, "img/s", at_least=LEAST_IMAGES_PER_S)
        report.add("features_bytes_per_image", size / arguments.features, "bytes")
        _add_parity(report, folder, bundle, arguments.pictures)
    report.notes.append(
        f"rescore: {arguments.features:,} images; parity on {arguments.pictures} bags scanned in FP32"
    )
    return report


def _rescored(results: Path, features: Path, out: Path, bundle: Bundle) -> None:
    rescore(RescoreSettings(results=results, features=features, model=bundle.path, out=out))


def _made_up_features(folder: Path, results: Path, bundle: Bundle) -> Path:
    """Write random features for the rows of a made-up result, and name the network in both footers."""
    folder.mkdir()
    random = np.random.default_rng(0)
    length = bundle.manifest.architecture.features
    batches = (
        features_to_batch(
            keys,
            np.abs(random.normal(0, 0.3, (keys.num_rows, length)).astype(np.float32)),
            random.normal(-4, 2, (keys.num_rows, len(THREATS))).astype(np.float32),
        )
        for keys in read_parquet(results, columns_of(*KEY_COLUMNS))
    )
    schema = features_schema(length, len(THREATS))
    write_parquet(folder / "features-00000001.parquet", schema, batches)
    footer = (read_footer(results) or {}) | {"trunk": bundle.trunk("fp32")}
    write_parquet(folder / COMMON_METADATA, schema, (), footer_metadata(footer))
    return folder


def _add_parity(report: Report, folder: Path, bundle: Bundle, pictures: int) -> None:
    """Compare what features give with what a scan gave, in units of the bundle's tolerance."""
    bags(folder / "bags", pictures)
    out, features = folder / "scanned", folder / "scanned.features"
    options = {"out": out, "features": features, "device": "cpu", "precision": "fp32"}
    Scan(ScanSettings(sources=(folder / "bags" / "images",), **options)).run()
    _rescored(out, features, folder / "again", bundle)
    scan, again = (pq.read_table(path) for path in (out, folder / "again"))
    tolerance = bundle.manifest.tolerance
    losses = ("reconstruction_loss", "feature_matching_loss")
    relative = [_difference(scan, again, name, relative=True) for name in losses]
    report.add("rescore_loss_rel", max(relative), "", at_most=tolerance.loss_rel)
    decision = bundle.manifest.default_decision
    spread = bundle.manifest.benign_score_std[decision]
    score = _difference(scan, again, "anomaly_score") / spread
    report.add("rescore_score_std", score, "std", at_most=tolerance.score)
    flips = np.mean(
        [a != b for a, b in zip(*(t["anomalous"].to_pylist() for t in (scan, again)), strict=True)]
    )
    report.add("rescore_flips", float(flips), "", at_most=tolerance.flips)


def _difference(one: pa.Table, other: pa.Table, name: str, *, relative: bool = False) -> float:
    a, b = (table[name].to_numpy().astype(np.float64) for table in (one, other))
    return float((np.abs(a - b) / (np.abs(a) if relative else 1)).max())
