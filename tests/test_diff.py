"""`gbad-batch diff`: what a new result decides differently, on cases worked out by hand."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from benchmarks.made_up_results import write_results
from scipy.stats import binom

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.rescreening import Difference, DiffSettings, diff, paired
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import SCHEMA_VERSION, footer_metadata, results_schema, to_batch
from gbad_batch.engine.row import Row

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
NOW = 1_700_000_000_000_000


def image(name: str, score: float | None, threats: Sequence[str] | None = None, **more: Any) -> Row:
    """Make the row of an image: an alarm if it names threats, even none of the five."""
    row = Row(f"/archive/{name}", bytes=10, mtime=NOW, status="ok" if score is not None else "truncated")
    row.anomaly_score, row.anomalous = score, None if score is None else threats is not None
    row.threats = None if threats is None else list(threats)
    for key, value in more.items():
        setattr(row, key, value)
    return row


def result(path: Path, rows: list[Row], threshold: float = 1.0, **footer: Any) -> Path:
    point = {
        "decision": "gbad", "precision": "fp32", "pfa": 0.05, "threshold": threshold,
        "class_thresholds": [0.5] * 5, "interval": None, "supported": True,
    }  # fmt: skip
    whole = {
        "scan_id": path.name, "fingerprint": {}, "runs": [], "schema": SCHEMA_VERSION, "bundle": path.stem,
        "bundle_hash": "ab" * 32, "demo": False, "backend": "openvino", "precision": "fp32",
        "operating_point": point, "rows": len(rows), "images": len(rows), "containers": 0, "gone": 0,
        "replaced": 0,
    }  # fmt: skip
    batch = to_batch(rows, results_schema())
    write_parquet(path, results_schema(), [batch], footer_metadata(whole | footer))
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Write two results: of seven images scored in both, three are raised and one is cleared."""
    old = [
        image("a/1.jpg", 0.0),
        image("a/2.jpg", 0.5),
        image("a/3.jpg", 2.0, ["gun"]),
        image("a/4.jpg", 3.0, ["knife"]),
        image("b/5.jpg", 0.0),
        image("t.tar!b/6.jpg", 0.9, offset=512),
        image("t.tar!b/6.jpg", 0.1, offset=2048),  # a tar may hold a name twice
        image("c/fails-now.jpg", 1.5, ["gun"]),
        image("c/failed-before.jpg", None),
        image("c/only-old.jpg", 9.0, ["gun"]),
        image("c/was-gone.jpg", 0.0, gone=NOW),
    ]
    new = [
        image("a/1.jpg", 3.0, ["gun", "pliers"]),
        image("a/2.jpg", 2.5, []),
        image("a/3.jpg", 1.0),
        image("a/4.jpg", 4.0, ["knife"]),
        image("b/5.jpg", 1.0, mtime=NOW + 1),
        image("t.tar!b/6.jpg", 2.2, ["scissors"], offset=512),
        image("t.tar!b/6.jpg", 0.2, offset=2048),
        image("c/fails-now.jpg", None),
        image("c/failed-before.jpg", 0.5),
        image("c/was-gone.jpg", 0.0),
        Row("/archive/c/closed", kind="container", status="unlistable"),
    ]
    return result(tmp_path / "old.parquet", old), result(tmp_path / "new.parquet", new, threshold=2.0)


def compared(two: tuple[Path, Path], **options: Any) -> Difference:
    return diff(DiffSettings(old=two[0], new=two[1], **options))


def test_flips_are_counted_in_each_direction_by_class_and_folder(two: tuple[Path, Path]) -> None:
    found = compared(two)
    assert (found.old.images, found.new.images, found.both, found.compared) == (10, 10, 9, 7)
    assert (found.only_old, found.only_new) == (1, 1)
    assert found.only_old_examples == ["/archive/c/only-old.jpg"]
    assert found.only_new_examples == ["/archive/c/was-gone.jpg"]
    assert (found.lost_score, found.got_score, found.changed_files) == (1, 1, 1)
    assert (found.alarms_old, found.alarms_new) == (2, 4)
    assert (found.tests[0].raised, found.tests[0].cleared) == (3, 1)
    classes = {each.name: (each.raised, each.cleared) for each in found.by_class}
    assert classes == {
        "gun": (1, 1), "pliers": (1, 0), "scissors": (1, 0), "no class": (1, 0), "knife": (0, 0),
        "wrench": (0, 0),
    }  # fmt: skip
    folders = [(each.name, each.images, each.raised, each.cleared) for each in found.by_folder]
    assert folders == [("/archive/a/", 4, 2, 1), ("/archive/t.tar!b/", 2, 1, 0)]


def test_flips_are_ranked_by_how_far_they_moved_across_the_threshold(two: tuple[Path, Path]) -> None:
    found = compared(two)
    assert [flip.uri[9:] for flip in found.raised] == ["a/1.jpg", "a/2.jpg", "t.tar!b/6.jpg"]
    assert [flip.uri[9:] for flip in found.cleared] == ["a/3.jpg"]
    old, new = [0.0, 0.5, 2.0, 3.0, 0.0, 0.9, 0.1], [3.0, 2.5, 1.0, 4.0, 1.0, 2.2, 0.2]
    spreads = [(sum(s * s for s in all_) / 7 - (sum(all_) / 7) ** 2) ** 0.5 for all_ in (old, new)]
    first = found.raised[0]
    assert first.change == pytest.approx((3.0 - 2.0) / spreads[1] - (0.0 - 1.0) / spreads[0])
    assert (first.old_threats, first.new_threats) == ([], ["gun", "pliers"])
    assert found.cleared[0].change < 0
    assert [flip.uri for flip in compared(two, top=1).raised] == [first.uri]
    assert compared(two, top=0).raised == []


def test_mcnemar_s_test_says_whether_one_direction_prevails() -> None:
    test = paired.paired("all images", 100, 9, 1)
    assert test.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert test.interval is not None
    assert test.interval[0] < 0.9 < test.interval[1]
    assert paired.paired("none", 100, 0, 0).p_value is None


def test_labels_divide_the_flips_into_gains_and_losses(two: tuple[Path, Path], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    lines = ["path,gun,knife,wrench,pliers,scissors", "a/1.jpg,1,0,0,0,0", "a/2.jpg,0,0,0,0,0"]
    lines += ["a/3.jpg,1,0,0,0,0", "c/fails-now.jpg,1,0,0,0,0", "b/5.jpg,0,0,0,0,0"]
    labels.write_text("\n".join(lines))
    found = compared(two, labels=labels)
    counts = {test.group: (test.images, test.raised, test.cleared) for test in found.tests}
    assert counts["images with a threat"] == (2, 1, 1)  # a score in both is needed
    assert counts["images without a threat"] == (2, 1, 0)
    assert counts["images with a gun"] == (2, 1, 1)
    assert counts["images with a knife"] == (0, 0, 0)
    by_name = {flip.uri[9:]: flip.labels for flip in (*found.raised, *found.cleared)}
    assert by_name == {"a/1.jpg": ["gun"], "a/2.jpg": [], "t.tar!b/6.jpg": None, "a/3.jpg": ["gun"]}
    labels.write_text("\n".join([lines[0], "nowhere.jpg,1,0,0,0,0"]))
    with pytest.raises(Refused, match="1 have no image"):
        compared(two, labels=labels)


def test_equal_results_have_no_flips(two: tuple[Path, Path]) -> None:
    found = compared((two[0], two[0]))
    assert (found.both, found.only_old, found.raised, found.cleared, found.by_folder) == (10, 0, [], [], [])
    assert found.tests[0].p_value is None


def test_the_command_prints_text_or_json_and_escapes_names(two: tuple[Path, Path], tmp_path: Path) -> None:
    ran = subprocess.run([COMMAND, "diff", *map(str, two)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "9 images in both, 7 scored in both; 1 only in OLD, 1 only in NEW" in ran.stdout
    assert "3 raised, 1 cleared (McNemar p = 0.62; " in ran.stdout
    assert "2 raised          1 cleared  /archive/a/ (4 images)" in ran.stdout
    assert "1 files have changed between the two scans" in ran.stdout
    ran = subprocess.run([COMMAND, "diff", *map(str, two), "--json"], capture_output=True, text=True)
    assert json.loads(ran.stdout)["alarms_new"] == 4
    hostile = image("x/\x1b[2J\u202e.jpg", 0.0), image("x/\x1b[2J\u202e.jpg", 3.0, [])
    old, new = (result(tmp_path / f"h{k}", [row]) for k, row in enumerate(hostile))
    ran = subprocess.run([COMMAND, "diff", str(old), str(new)], capture_output=True, text=True)
    assert r"x/\x1b[2J\u202e.jpg" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_what_is_no_result_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not exist"):
        compared((two[0], tmp_path / "absent"))
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(two[0]).replace_schema_metadata(None), foreign)
    with pytest.raises(Refused, match="does not hold results"):
        compared((foreign, two[1]))
    older = result(tmp_path / "older", [image("a/1.jpg", 0.0)], schema=1)
    with pytest.raises(Refused, match="another version"):
        compared((older, two[1]))
    twice = result(tmp_path / "twice", [image("a/1.jpg", 0.0)] * 2)
    with pytest.raises(Refused, match="two rows for an image"):
        compared((twice, twice))


def test_results_of_many_rows_are_joined(tmp_path: Path) -> None:
    old, new = (write_results(tmp_path / f"{seed}", 3000, seed) for seed in (1, 2))
    found = diff(DiffSettings(old=old, new=new, top=5))
    before, now = (pq.read_table(path)["anomalous"].to_pylist() for path in (old, new))
    assert found.tests[0].raised == sum(n and not b for b, n in zip(before, now, strict=True))
    assert found.tests[0].cleared == sum(b and not n for b, n in zip(before, now, strict=True))
    assert [flip.change for flip in found.raised] == sorted((f.change for f in found.raised), reverse=True)
    assert len(found.raised) == 5
