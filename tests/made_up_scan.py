"""Results with made-up scores, of images that are there: listed, read and decoded as by a scan."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_bundle as tiny
from PIL import Image

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import SCHEMA_VERSION, footer_metadata, results_schema, to_batch
from gbad_batch.engine.row import THREATS, ImageFault, Row
from gbad_batch.engine.sources import ListingCounts, SourceSettings, find

THRESHOLD = 0.5  # of the scores


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def scanned(folder: Path, out: Path, bundle: Bundle) -> Path:
    """Write the rows of a scan of a folder: listed, read and decoded as by a scan, with made-up scores."""
    decode, rows = Decoder(tiny.SIZE, DecodeLimits()), list[Row]()
    for candidate in find(SourceSettings((folder,)), ListingCounts(), lambda _: True):
        row = candidate.row
        try:
            data = candidate.read()
        except ImageFault as fault:
            row.fail(fault)
        else:
            row.sha256 = hashlib.sha256(data).digest()
            if decode(row, data) is not None:
                score(row, np.random.default_rng(list(row.sha256)))
        rows.append(row)
    schema = results_schema()
    write_parquet(out, schema, [to_batch(rows, schema)], footer_metadata(footer(bundle, len(rows))))
    return out


def score(row: Row, random: np.random.Generator) -> None:
    """Make scores up, the same for equal bytes."""
    row.p_gun, row.p_knife, row.p_wrench, row.p_pliers, row.p_scissors = random.random(5).tolist()
    row.reconstruction_loss, row.feature_matching_loss = random.lognormal(size=2).tolist()
    row.anomaly_score = float(random.normal())
    row.anomalous = row.anomaly_score >= THRESHOLD
    row.threats = ["gun"] if row.anomalous else None


def footer(bundle: Bundle, rows: int) -> dict[str, Any]:
    point = {"decision": "gbad", "precision": "fp32", "pfa": 0.05, "threshold": THRESHOLD}
    point |= {"class_thresholds": [0.5] * len(THREATS), "interval": None, "supported": True}
    runs = [{"host": "here", "start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:00:10+00:00"}]
    words = {"bundle": "tiny", "bundle_hash": bundle.hash, "backend": "openvino", "precision": "fp32"}
    counts = {"rows": rows, "images": rows, "containers": 0, "gone": 0, "replaced": 0}
    scan = {"scan_id": "made-up", "fingerprint": {"sources": ["/archive"]}, "runs": runs}
    return {**words, **counts, **scan, "demo": True, "schema": SCHEMA_VERSION, "operating_point": point}
