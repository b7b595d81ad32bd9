"""Whether one flipped bit among many signed rows is named, and how long signing and verifying take."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import footer_metadata, read_footer, results_schema
from gbad_batch.engine.signing import sign, verify

from ..made_up_results import write_results
from ..report import Report

ROWS = 1_000_000


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many rows are signed."""
    parser.add_argument("--signed-rows", type=int, default=ROWS, metavar="N", help="rows that are signed")


def run(arguments: argparse.Namespace) -> Report:
    """Sign a result, verify it, flip a bit of one score, and verify it again."""
    report = Report("One flipped bit among signed rows")
    rows: int = arguments.signed_rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        private, public = _keys(folder)
        results = write_results(folder / "results", rows)
        began = time.perf_counter()
        signature = sign(results, private, None, str).path
        signed = time.perf_counter()
        verify(results, public)
        report.add("sign_s", signed - began, "s")
        report.add("verify_s", time.perf_counter() - signed, "s")
        row = rows * 2 // 3
        uri = _flip(results, folder / "flipped", row)
        try:
            verify(folder / "flipped", public, signature)
            named = False
        except Refused as refused:
            named = f"1 row has changed: row {row + 1} ({uri})" in str(refused)
    report.add("flipped_bit_named", named, at_least=1)
    report.notes.append(f"signed: {rows:,} rows")
    return report


def _keys(folder: Path) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def _flip(results: Path, out: Path, row: int) -> str:
    """Write a copy of a result in which the last bit of one score is another; returns the row's uri."""
    table = pq.read_table(results)
    scores = table["anomaly_score"].to_numpy().copy()
    scores[row : row + 1].view(np.int64)[0] ^= 1
    at = table.schema.get_field_index("anomaly_score")
    changed = table.set_column(at, table.schema.field(at), pa.array(scores))
    write_parquet(out, results_schema(), changed.to_batches(), footer_metadata(read_footer(results) or {}))
    return table["uri"][row].as_py()
