"""Results as CSV, xlsx and JSON, and the recipes of the docs for programs that read Parquet."""

import csv
import json
import os
import re
import subprocess
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from gbad_batch import Refused, Row
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.results import open_results
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.schema import COLUMNS, results_schema, to_batch
from gbad_batch.engine.settings import ScanSettings
from gbad_batch.engine.sources.uris import uri_of
from gbad_batch.engine.tables import export

PAGE = (Path(__file__).parent.parent / "docs" / "tables.md").read_text()
RECIPES = dict(re.findall(r"^## (\w+)\n.*?```python\n(.*?)```", PAGE, re.M | re.S))
MTIME = 1_700_000_000_123_456  # us since the epoch
NAMES = (
    b"/archive/plain.png",
    b"/archive/100% b\xe4g,\n\"=1.tar!=cmd|' /C calc'!A0.png",
    b"/archive/old.png",
)


def rows() -> list[Row]:
    """Three rows: an alarm, one whose texts want to be formulas, and one that lacks nearly everything."""
    alarm, hostile, bare = (Row(uri_of(name), bytes=9, mtime=MTIME) for name in NAMES)
    alarm.status, alarm.anomaly_score, alarm.anomalous, alarm.threats = "ok", 1.5, True, ["gun", "knife"]
    alarm.sha256, alarm.p_gun, alarm.width = bytes(range(32)), 0.1, 640
    hostile.status, hostile.error, hostile.offset = "undecodable", "=HYPERLINK(0)", 512
    bare.status, bare.mtime = "vanished", -62_000_000_000_000_000  # in the year 5
    return [alarm, hostile, bare]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    out = tmp_path / "results.parquet"
    with open_results(ScanSettings(out=out), {}, {}) as session:
        for row in rows():
            session.index.claim(key_of(row), row.kind)
        session.write(to_batch(rows(), results_schema()))
        session.finish()
    return out


def exported(results: Path, extension: str) -> Path:
    out = results.with_suffix(extension)
    ran = CliRunner().invoke(main, ["export", str(results), str(out)], catch_exceptions=False)
    assert (ran.exit_code, ran.output) == (0, f"{out}: 3 rows\n")
    assert {path.name for path in out.parent.iterdir()} == {results.name, out.name}
    return out


def test_a_csv_is_safe_in_a_spreadsheet_and_keeps_every_value(results: Path) -> None:
    with exported(results, ".csv").open(newline="") as file:
        alarm, hostile, bare = csv.DictReader(file)
    assert list(alarm) == ["uri", "path", *list(COLUMNS)[1:]]
    assert alarm["sha256"] == bytes(range(32)).hex()
    assert (alarm["threats"], alarm["p_gun"], alarm["anomalous"]) == ("gun;knife", "0.1", "true")
    assert alarm["mtime"] == "2023-11-14 22:13:20.123"
    assert hostile["error"] == "'=HYPERLINK(0)"
    assert hostile["path"] == "/archive/100% b\\xe4g,\n\"=1.tar!=cmd|' /C calc'!A0.png"
    assert hostile["uri"] == uri_of(NAMES[1])
    assert (bare["anomaly_score"], bare["threats"]) == ("", "")


def test_an_xlsx_has_typed_cells_and_no_formula(results: Path) -> None:
    sheet = openpyxl.load_workbook(exported(results, ".xlsx"))["results"]
    head, *values = sheet.iter_rows()
    names = [cell.value for cell in head]
    alarm, hostile, bare = (dict(zip(names, cells, strict=True)) for cells in values)
    assert {cell.data_type for cells in values for cell in cells} <= {"s", "n", "b", "d"}
    assert hostile["error"].value == "=HYPERLINK(0)"
    assert alarm["mtime"].value == datetime(2023, 11, 14, 22, 13, 20, 123000)
    assert [alarm[name].value for name in ("anomalous", "threats", "width")] == [True, "gun;knife", 640]
    assert str(bare["mtime"].value)[:4] == "0005"
    assert bare["anomaly_score"].value is None


def test_json_is_an_array_of_rows(results: Path) -> None:
    alarm, hostile, _ = json.loads(exported(results, ".json").read_text())
    stored = pq.read_table(results).to_pylist()
    as_it_is = set(COLUMNS) - {"mtime", "sha256", "scanned_at"}
    assert {name: alarm[name] for name in as_it_is} == {name: stored[0][name] for name in as_it_is}
    assert alarm["mtime"] == "2023-11-14T22:13:20.123456+00:00"
    assert hostile["error"] == "=HYPERLINK(0)"


def test_what_cannot_be_exported_is_refused_and_writes_nothing(results: Path, tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    for given, out, told in (
        (results, "out.txt", "must end in .csv, .xlsx or .json"),
        (results, "there.csv", "exists already"),
        (tmp_path / "absent.parquet", "out.csv", "is not a finished result"),
    ):
        with pytest.raises(Refused, match=told):
            export(given, tmp_path / out)
    damaged = bytearray(results.read_bytes())
    damaged[60:120] = bytes(60)
    results.write_bytes(damaged)
    with pytest.raises(Refused, match="damaged"):
        export(results, tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"results.parquet", "there.csv"}


@pytest.mark.parametrize("program", RECIPES)
def test_the_recipes_of_the_docs_find_the_alarm(program: str, results: Path) -> None:
    module = {"Spark": "pyspark"}.get(program, program.lower())
    if not find_spec(module):
        pytest.skip(f"{module} is not installed")
    environment: dict[str, Any] = os.environ | {"COLUMNS": "200"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", RECIPES[program]],
        cwd=results.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "/archive/plain.png" in ran.stdout
