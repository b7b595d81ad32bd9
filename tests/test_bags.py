"""Views of one bag are joined to a row a bag, wherever they stand in the results, and none is lost."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from gbad_batch.engine import grouping
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.grouping import ByPattern
from gbad_batch.engine.rescreening import bagging
from gbad_batch.engine.results.features import write_common_metadata
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import (
    SCHEMA_VERSION,
    footer_metadata,
    read_footer,
    results_schema,
    to_batch,
)
from gbad_batch.engine.row import THREATS, Row

THRESHOLD = 1.0
PATTERN = r"/(bag\d+)[_.]"


def image(name: str, score: float | None, threats: tuple[str, ...] = (), **more: Any) -> Row:
    """Make the row of an image, truncated if it has no score."""
    row = Row(f"/archive/{name}", bytes=10, mtime=0, status="ok", **more)
    if score is None:
        row.status, row.error = "truncated", "it ends early"
        return row
    row.sha256 = name.encode().ljust(32, b"0")[:32]
    row.anomaly_score, row.anomalous = score, score >= THRESHOLD
    row.threats = list(threats) if row.anomalous else None
    row.p_gun = row.p_knife = row.p_wrench = row.p_pliers = row.p_scissors = min(1.0, abs(score) / 4)
    row.reconstruction_loss = row.feature_matching_loss = row.largest_logit = 1.0
    return row


ROWS = [
    image("top/bag1_t.png", 0.5),
    image("top/bag2_t.png", 2.0, ("gun",)),
    image("top/bag3_t.png", None),
    image("top/bag10_t.png", None),
    Row("/archive/shut", kind="container", status="unlistable", error="no permission"),
    image("top/odd.png", 3.0),
    image("side/bag2_s.png", 1.5, ("knife", "gun")),
    image("side/bag1_s.png", 0.25),
    image("gone/bag1_g.png", 9.0, gone=1),
    image("side/bag3_s.png", 0.75),
    image("side/bag2_x.png", None),
]


def results_of(rows: list[Row], out: Path, bundle: Bundle) -> Path:
    point = {"decision": "gbad", "precision": "fp32", "pfa": 0.05, "threshold": THRESHOLD}
    point |= {"class_thresholds": [0.5] * len(THREATS), "interval": None, "supported": True}
    footer: dict[str, Any] = {"bundle": "tiny", "bundle_hash": bundle.hash, "backend": "openvino"}
    footer |= {"precision": "fp32", "demo": True, "operating_point": point, "schema": SCHEMA_VERSION}
    footer |= {"scan_id": "made-up", "fingerprint": {}, "runs": [], "rows": len(rows), "images": len(rows)}
    footer |= dict.fromkeys(("containers", "gone", "replaced"), 0)
    schema = results_schema()
    batches = [to_batch(rows[at : at + 3], schema) for at in range(0, len(rows), 3)]
    write_parquet(out, schema, batches, footer_metadata(footer))
    return out


@pytest.fixture
def results(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    return results_of(ROWS, tmp_path / "results.parquet", tiny_bundle)


def bags(results: Path, *words: object) -> Result:
    return CliRunner().invoke(main, ["bags", str(results), *map(str, words)])


def joined(results: Path, *words: object) -> list[dict[str, Any]]:
    out = results.parent / "bags.parquet"
    said = bags(results, *words, "--out", out)
    assert said.exit_code == 0, said.stderr
    return pq.read_table(out).to_pylist()


def test_a_row_a_bag_in_the_order_of_the_first_view(results: Path) -> None:
    rows = joined(results, "--group-by", PATTERN)
    assert [row["bag"] for row in rows] == ["bag1", "bag2", "bag3", "bag10", "/archive/top/odd.png"]
    one, two, three, ten, odd = rows
    assert (one["views"], one["failed"], one["anomaly_score"], one["anomalous"]) == (2, 0, 0.5, False)
    assert one["threats"] is None
    assert one["view"] == "/archive/top/bag1_t.png"
    assert (two["views"], two["failed"], two["anomaly_score"], two["anomalous"]) == (3, 1, 2.0, True)
    assert two["threats"] == ["gun", "knife"]  # of both alarming views
    assert two["uris"] == [
        f"/archive/{name}" for name in ("top/bag2_t.png", "side/bag2_s.png", "side/bag2_x.png")
    ]
    assert two["statuses"] == ["ok", "ok", "truncated"]
    assert two["scores"] == [2.0, 1.5, None]
    assert two["p_gun"] == 0.5
    assert (three["failed"], three["anomaly_score"], three["view"]) == (1, 0.75, "/archive/side/bag3_s.png")
    assert (ten["views"], ten["failed"]) == (1, 1)
    assert [ten[name] for name in ("anomaly_score", "anomalous", "threats", "view", "p_gun")] == [None] * 5
    assert (odd["views"], odd["anomalous"]) == (1, True)
    assert sum(row["views"] for row in rows) == 9  # all images but the one that is gone; no container


def test_the_figures_are_printed(results: Path) -> None:
    out = results.parent / "bags.parquet"
    said = bags(results, "--group-by", PATTERN, "--out", out, "--json")
    assert json.loads(said.stdout) == {
        "results": str(results), "out": str(out), "images": 9, "bags": 5, "alarms": 2, "unscored": 1,
        "incomplete": 3, "single": 1, "largest": 3,
    }  # fmt: skip
    said = bags(results, "--group-by", PATTERN, "--out", out)  # replaces it
    assert said.stdout.splitlines() == [
        "5 bags of up to 3 views, from 9 images",
        "           2 alarm",
        "           3 with a failed view, 1 of them without any score",
        "           1 images not named as views, each a bag of its own",
        "",
        f"Bags: {out}",
    ]
    described = pq.read_schema(out)
    assert all((described.field(name).metadata or {})[b"description"] for name in described.names)


def test_folders_of_parts_serve_too(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    table = pq.read_table(results)
    for number, (at, count) in enumerate(((0, 5), (5, 6)), 1):
        pq.write_table(table.slice(at, count), folder / f"part-{number:08d}.parquet")
    footer = read_footer(results)
    assert footer is not None
    write_common_metadata(folder, results_schema(), footer)
    assert joined(folder, "--group-by", PATTERN) == joined(results, "--group-by", PATTERN)


@pytest.mark.parametrize(
    ("pattern", "bag"),
    [
        (r"(\d{8})/.*(bag\d+)", "20260301/bag7"),
        (r"(?P<day>\d{8})/.*(?:bag)(\d+)", "20260301/7"),
        (r"bag\d+", "bag7"),
        (r"case(\d+)|bag(\d+)", "7"),
        (r"[(](x*)", None),
        (r"\((view) 1\)", "view"),
        (r"x*", None),
        ("über", "über"),
    ],
)
def test_groups_of_a_pattern_name_the_bag(pattern: str, bag: str | None) -> None:
    uris = pa.array(["/a/20260301/über/bag7 (view 1).png"])
    assert ByPattern(pattern).bags(uris).to_pylist() == [bag]


@pytest.mark.parametrize(
    ("lines", "bags_of_views"),
    [
        ("name,bag\nbag1_t.png,A\nbag2_s.png,A\nelsewhere.png,B\n", {"A": 2}),
        ("Path,Other,GROUP\n/archive/top/bag1_t.png,1,A\n/archive/side/bag1_s.png,1,A\n", {"A": 2}),
        ('\ufeffuri,bag\n"/archive/top/odd.png","x,y"\n', {"x,y": 1}),
    ],
)
def test_a_table_names_the_bags(results: Path, lines: str, bags_of_views: dict[str, int]) -> None:
    table = results.parent / "views.csv"
    table.write_text(lines)
    rows = joined(results, "--groups", table)
    named = {row["bag"]: row["views"] for row in rows if not row["bag"].startswith("/archive")}
    assert named == bags_of_views
    assert sum(row["views"] for row in rows) == 9


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.none() | st.floats(-5, 5)), min_size=1, max_size=40))
def test_no_view_is_lost_in_any_order(tiny_bundle: Bundle, views: list[tuple[int, float | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bagging, "BAGS_PER_FILE", 2)  # so that there are several files
        rows = [image(f"{k}/bag{bag}_.png", score) for k, (bag, score) in enumerate(views)]
        results = results_of(rows, Path(folder) / "r.parquet", tiny_bundle)
        found = joined(results, "--group-by", PATTERN)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["bags.parquet", "r.parquet"]
    assert [row["bag"] for row in found] == list(dict.fromkeys(f"bag{bag}" for bag, _ in views))
    for row in found:
        own = [
            (r.uri, r.anomaly_score)
            for r, (bag, _) in zip(rows, views, strict=True)
            if f"bag{bag}" == row["bag"]
        ]
        assert list(zip(row["uris"], row["scores"], strict=True)) == own
        scores = [score for _, score in own if score is not None]
        assert row["anomaly_score"] == max(scores, default=None)
        assert row["anomalous"] == (max(scores) >= THRESHOLD if scores else None)
        assert row["failed"] == len(own) - len(scores)


def test_numbers_follow_the_first_occurrence() -> None:
    hashes = np.array([[5, 1], [2, 9], [5, 1], [5, 0], [2, 9]], np.uint64)
    numbers, count = grouping._numbers(hashes)
    assert (numbers.tolist(), count) == ([0, 1, 0, 2, 1], 3)


# --- refusals ---


def refusals(folder: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    def table(name: str, text: str | bytes) -> tuple[object, ...]:
        path = folder / f"{name}.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return ("--groups", path)

    return {
        "nothing asked": ((), "what makes a bag is missing: add --group-by REGEX or --groups FILE"),
        "both asked": ((*table("both", "name,bag\nx,y\n"), "--group-by", "x"), "exclude each other"),
        "no expression": (("--group-by", "(bag"), "is not a regular expression: "),
        "fits nothing": (("--group-by", "(case)"), "fits names such as '/archive/top/bag1_t.png'"),
        "no file": (("--groups", folder / "no.csv"), "cannot be read: No such file"),
        "no bag": (table("head", "name,case\nx,y\n"), "needs the columns name (or path, uri) and bag"),
        "twice": (table("twice", "name,bag\nx,a\nx,b\n"), "names 'x' more than once: keep one line"),
        "blank": (table("blank", "name,bag\nx,\n"), "the bag of 'x' is blank"),
        "ragged": (table("ragged", "name,bag\nx\n"), "is not a table in CSV"),
        "not UTF-8": (table("latin", b"name,bag\n\xff,\xfe\n"), "is not a table in CSV"),
        "empty": (table("empty", "name,bag\n"), "names no image"),
        "others": (table("others", "name,bag\nx,y\n"), "names the bag of no image"),
    }


def test_what_makes_no_bags_is_refused_in_a_sentence(results: Path, tmp_path: Path) -> None:
    for what, (words, sentence) in refusals(tmp_path).items():
        before = sorted(tmp_path.iterdir())
        said = bags(results, *words, "--out", tmp_path / "bags.parquet")
        assert (said.exit_code, said.stdout) == (2, ""), what
        assert said.stderr.startswith("gbad-batch: "), what
        assert said.stderr.count("\n") == 1, what
        assert sentence in said.stderr, (what, said.stderr)
        assert sorted(tmp_path.iterdir()) == before, what


def test_other_files_stay(results: Path, tmp_path: Path) -> None:
    before = results.read_bytes()
    said = bags(results, "--group-by", PATTERN, "--out", results)
    assert (said.exit_code, "is not a table of bags and is left as it is" in said.stderr) == (2, True)
    assert results.read_bytes() == before
    joined(results, "--group-by", PATTERN)
    said = bags(tmp_path / "bags.parquet", "--group-by", PATTERN, "--out", tmp_path / "new")
    assert (said.exit_code, "does not hold results of a scan" in said.stderr) == (2, True)
