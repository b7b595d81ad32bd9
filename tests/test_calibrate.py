"""Verdicts become an operating point of the site's own, whose interval holds the true rate."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_in_stages as stand_ins
import tiny_bundle as tiny
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binom, norm
from written import rows_of

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, operating_point, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.rescreening import DecideSettings, decide
from gbad_batch.engine.rescreening.judged import HARMLESS, THREAT, UNJUDGED, UNSURE, Drawn, Judged
from gbad_batch.engine.results.schema import FOOTER_KEY, read_footer

IMAGES, THREATS_IN = 120, 12
RUNS = 200


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, one of them three times, and a file that gets no score."""
    root = tmp_path_factory.mktemp("archive")
    for i, picture in enumerate(tiny.pictures(IMAGES, seed=8)):
        Image.fromarray(picture).save(root / f"bag{i:03d}.png")
    for copy in ("copy1.png", "copy2.png"):
        (root / copy).write_bytes((root / "bag007.png").read_bytes())
    (root / "empty.png").touch()
    return root


@pytest.fixture(scope="module")
def results(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "results.parquet"
    Scan(ScanSettings(sources=(archive,), out=out, model=tiny_bundle.path, pfa=0.25)).run()
    return out


def ranked(results: Path) -> list[dict[str, Any]]:
    """Return the distinct images by falling score."""
    table = pq.read_table(results, columns=["uri", "sha256", "status", "anomaly_score"])
    rows = {row["sha256"]: row for row in table.to_pylist() if row["status"] == "ok"}
    return sorted(rows.values(), key=lambda row: -row["anomaly_score"])


def verdict(rank: int) -> str:
    """Give the verdict on the image of a rank: every fourth is a threat, one is unsure."""
    return "unsure" if rank == 9 else "threat" if rank % 4 == 0 else "harmless"


def written(path: Path, lines: list[tuple[str, ...]], header: str = "sha256,uri,verdict,time") -> Path:
    """Write verdicts as the page does."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *lines])
    return path


def lines_of(results: Path, count: int) -> list[tuple[str, ...]]:
    rows = ranked(results)[:count]
    return [
        (row["sha256"].hex(), row["uri"], verdict(k), "2026-03-01T00:00:00Z") for k, row in enumerate(rows)
    ]


def calibrate(results: Path, verdicts: Path, out: Path, *more: object) -> Result:
    words = ["calibrate", results, "--verdicts", verdicts, "--out", out, *more]
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def point(results: Path, tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Calibrate by verdicts on the top of the ranking."""
    verdicts = written(tmp_path / "verdicts.csv", lines_of(results, 40))
    said = calibrate(results, verdicts, tmp_path / "point.json", "--model", tiny_bundle.path, "--pfa", 0.1)
    assert said.exit_code == 0, said.stderr
    return tmp_path / "point.json"


# --- what it computes ---


def test_verdicts_on_the_top_give_counts_and_a_point(
    results: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    verdicts = written(tmp_path / "verdicts.csv", lines_of(results, 40))
    out = tmp_path / "point.json"
    said = calibrate(results, verdicts, out, "--model", tiny_bundle.path, "--pfa", 0.1, "--json")
    assert said.exit_code == 0, said.stderr
    figures = json.loads(said.stdout)
    assert figures["images"] == IMAGES  # equal bytes count once, the empty file not at all
    assert figures["given"] == {"threat": 10, "harmless": 29, "unsure": 1}
    assert (figures["top"]["images"], figures["top"]["unjudged"]) == (40, 0)
    scores = [row["anomaly_score"] for row in ranked(results)]
    now = figures["now"]
    assert now["images"] == sum(score >= now["threshold"] for score in scores)
    assert now["unjudged"] == max(0, now["images"] - 40)
    new, harmless = figures["new"], IMAGES - 10
    assert new["false"] + new["unsure"] == int(0.1 * harmless) == 11
    assert new["images"] == sum(score >= new["threshold"] for score in scores) == new["true"] + 11
    assert new["unjudged"] == 0
    assert new["pfa"] is None  # one alarm is unsure
    low, high = new["interval"]
    assert low < 10 / harmless < 11 / harmless < high
    stored = json.loads(out.read_text())["operating_point"]
    assert stored == figures["point"]
    assert (stored["pfa"], stored["threshold"]) == (0.1, new["threshold"])
    assert not stored["supported"]
    assert stored["class_thresholds"] == list(operating_point(tiny_bundle, "fp32", pfa=0.1).class_thresholds)


def test_the_text_says_what_is_known_and_what_is_not(
    results: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    verdicts = written(tmp_path / "verdicts.csv", lines_of(results, 40))
    said = calibrate(results, verdicts, tmp_path / "p", "--model", tiny_bundle.path, "--pfa", 0.1).stdout
    for part in (
        "40 verdicts: 10 threat, 29 harmless, 1 unsure; 120 distinct images",
        "alarms at the new point (score >= ",
        "4 true, 10 false, 1 unsure; PFA ",
        "40 most anomalous images have a verdict without a gap",
        "count as harmless",
        "cannot be told",
        "1 alarm at the new point unsure",
        f"Operating point: {tmp_path / 'p'}",
    ):
        assert part in said


def test_what_is_not_judged_widens_the_interval_only() -> None:
    scores = np.arange(100.0)[::-1]
    verdicts = np.full(100, HARMLESS, np.int8)
    sure = Judged(scores, verdicts).alarms(80.0)
    assert (sure.images, sure.false, sure.pfa) == (20, 20, 0.2)
    verdicts[[3, 7]] = UNSURE, UNJUDGED
    judged = Judged(scores, verdicts)
    open_ = judged.alarms(80.0)
    assert (open_.false, open_.unsure, open_.unjudged, open_.pfa) == (18, 1, 1, None)
    assert open_.interval[0] < sure.interval[0]
    assert open_.interval[1] == sure.interval[1]
    assert judged.top().images == 7
    assert judged.threshold(0.05) == Judged(scores, np.full(100, UNJUDGED, np.int8)).threshold(0.05)


def test_a_sample_of_the_alarms_stands_for_all_of_them() -> None:
    scores = np.arange(1000.0)[::-1]
    verdicts, members = np.full(1000, UNJUDGED, np.int8), np.zeros(1000, np.bool_)
    members[:200:4] = True  # 50 of 200 alarms
    verdicts[:200:4] = HARMLESS
    verdicts[:40:4] = THREAT
    judged = Judged(scores, verdicts, Drawn(members, 800.0, 0.25))
    alarms = judged.alarms(800.0)
    assert (judged.harmless, alarms.images, alarms.drawn) == (960, 200, 50)
    assert (alarms.true, alarms.false, alarms.unjudged) == (10, 40, 0)
    assert alarms.pfa == 160 / 960
    assert alarms.interval[0] < 160 / 960 < alarms.interval[1]
    whole = Judged(scores, np.where(np.arange(1000) < 40, THREAT, HARMLESS).astype(np.int8)).alarms(800.0)
    assert alarms.interval[0] < whole.interval[0] < whole.interval[1] < alarms.interval[1]
    assert judged.threshold(0.2) is None  # below the alarms
    assert judged.threshold(0.1) == (scores[40 + 4 * 23] + scores[40 + 4 * 24]) / 2  # 24 of them allowed


def test_the_interval_of_a_sample_holds_the_true_rate_in_95_percent_of_200_sites() -> None:
    random, held = np.random.default_rng(43), {"new": 0, "given": 0}
    for _ in range(RUNS):
        threat = random.random(40_000) < 0.01
        scores = random.normal(np.where(threat, 2.0, 0.0))
        alarms = np.flatnonzero(scores >= 1.5)
        members = np.zeros(len(scores), np.bool_)
        members[random.permutation(alarms)[:400]] = True
        verdicts = np.where(members, np.where(threat, THREAT, HARMLESS), UNJUDGED).astype(np.int8)
        judged = Judged(scores, verdicts, Drawn(members, 1.5, 400 / len(alarms)))
        threshold = judged.threshold(0.03)
        assert threshold is not None
        for name, at in (("new", threshold), ("given", 1.5)):
            low, high = judged.alarms(at).interval
            held[name] += bool(low <= norm.sf(at) <= high)
    assert min(held.values()) >= binom.ppf(0.001, RUNS, 0.95)


def test_verdicts_on_a_sample_of_a_report_give_a_point(
    results: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    given = ("--model", str(tiny_bundle.path))
    alarms = sum(r["anomaly_score"] >= threshold_of(results) for r in ranked(results))
    size, page = alarms * 2 // 3, tmp_path / "sample.html"
    said = CliRunner().invoke(
        main, ["report", str(results), *given, "--sample", str(size), "--out", str(page)]
    )
    assert said.exit_code == 0, said.stderr
    shown = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert shown is not None
    data = json.loads(shown[1])
    entries = data["entries"]
    assert data["sample"] == {"drawn": size, "alarms": alarms}
    assert len(entries) == size
    assert all(entry["score"] >= threshold_of(results) for entry in entries)
    lines = [(e["sha256"], e["uri"], verdict(k + 1), "", str(size)) for k, e in enumerate(entries)]
    header = "sha256,uri,verdict,time,sample"
    out = tmp_path / "p"
    verdicts = written(tmp_path / "v.csv", lines, header)
    said = calibrate(results, verdicts, out, *given, "--pfa", 0.08, "--json")
    assert said.exit_code == 0, said.stderr
    figures = json.loads(said.stdout)
    assert (figures["now"]["images"], figures["now"]["drawn"], figures["top"]) == (alarms, size, None)
    assert figures["new"]["threshold"] >= threshold_of(results)
    said = calibrate(results, verdicts, out, *given, "--pfa", 0.9)
    assert (said.exit_code, "lies below the alarms" in said.stderr) == (2, True)
    for change, sentence in (
        (lines[1:], "of the sample that score"),
        ([(*lines[0][:4], "7"), *lines[1:]], "in the column sample"),
        ([(*line[:4], "some") for line in lines], "in the column sample"),
    ):
        said = calibrate(
            results, written(tmp_path / "w.csv", change, header), tmp_path / "q", *given, "--pfa", 0.08
        )
        assert (said.exit_code, sentence in said.stderr) == (2, True), said.stderr


def threshold_of(results: Path) -> float:
    footer = read_footer(results)
    assert footer is not None
    return footer["operating_point"]["threshold"]


def simulated(random: np.random.Generator, unsure: float) -> tuple[Judged, NDArray[np.bool_]]:
    """Simulate an archive of 3,000 bags, 1 % with threats, whose 300 most anomalous were judged."""
    threat = random.random(3000) < 0.01
    scores = random.normal(np.where(threat, 2.0, 0.0))
    verdicts = np.full(3000, UNJUDGED, np.int8)
    top = np.argsort(-scores)[:300]
    verdicts[top] = np.where(threat[top], THREAT, HARMLESS)
    verdicts[top[random.random(300) < unsure]] = UNSURE
    return Judged(scores, verdicts), threat


@pytest.mark.parametrize("unsure", [0.0, 0.1])
def test_the_interval_holds_the_true_rate_in_95_percent_of_200_sites(unsure: float) -> None:
    random, held = np.random.default_rng(42), {"new": 0, "given": 0}
    for _ in range(RUNS):
        judged, _ = simulated(random, unsure)
        threshold = judged.threshold(0.05)
        assert threshold is not None
        for name, at in (("new", threshold), ("given", 1.7)):
            alarms = judged.alarms(at)
            assert alarms.unjudged == 0
            low, high = alarms.interval
            held[name] += bool(
                low <= norm.sf(at) <= high
            )  # of harmless bags, whose scores are standard normal
    least = binom.ppf(0.001, RUNS, 0.95)  # fewer of 200 have probability 0.001 where 95 % is true
    assert min(held.values()) >= least


# --- the point in use ---


def test_scan_and_decide_take_the_point(
    results: Path, archive: Path, tiny_bundle: Bundle, point: Path, tmp_path: Path
) -> None:
    decided = decide(
        DecideSettings(results=results, out=tmp_path / "d.parquet", model=tiny_bundle.path, point=point)
    )
    stored = json.loads(point.read_text())["operating_point"]
    assert decided.alarms == pq.read_table(tmp_path / "d.parquet")["anomalous"].to_pylist().count(True)
    Scan(
        ScanSettings(sources=(archive,), out=tmp_path / "s.parquet", model=tiny_bundle.path, point=point)
    ).run()
    assert rows_of(tmp_path / "s.parquet").equals(rows_of(tmp_path / "d.parquet"))
    scanned, again = (read_footer(tmp_path / name) for name in ("s.parquet", "d.parquet"))
    assert scanned is not None
    assert again is not None
    assert scanned["operating_point"] == again["operating_point"] == stored
    assert scanned["fingerprint"] == again["fingerprint"]
    scores = pq.read_table(tmp_path / "s.parquet", columns=["anomaly_score", "anomalous"]).to_pylist()
    assert all(
        r["anomalous"] == (r["anomaly_score"] >= stored["threshold"]) for r in scores if r["anomaly_score"]
    )


def test_a_scan_goes_on_with_the_same_point_under_any_name_and_with_no_other(
    archive: Path, tiny_bundle: Bundle, point: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "sources": (archive,),
        "model": tiny_bundle.path,
        "out": tmp_path / "r.parquet",
    }
    Scan(ScanSettings(**options, point=point)).run()
    moved = tmp_path / "elsewhere" / "same.json"
    moved.parent.mkdir()
    moved.write_text(json.dumps(json.loads(point.read_text())))  # the same content, laid out otherwise
    Scan(ScanSettings(**options, point=moved, update=True)).run()
    document = json.loads(point.read_text())
    document["operating_point"]["class_thresholds"][2] = 0.99
    point.write_text(json.dumps(document))
    with pytest.raises(Refused, match=r"another point: .*decide .* --point .*point\.json"):
        Scan(ScanSettings(**options, point=point, update=True)).run()
    others: list[dict[str, Any]] = [
        {"pfa": 0.1},
        {"threshold": document["operating_point"]["threshold"]},
    ]
    for other in others:
        with pytest.raises(Refused, match=r"another .*point"):
            Scan(ScanSettings(**options, **other, update=True)).run()


def test_an_unfinished_scan_is_resumed_with_the_content_of_its_point_only(
    archive: Path, tiny_bundle: Bundle, point: Path, tmp_path: Path
) -> None:
    settings = ScanSettings(
        sources=(archive,), model=tiny_bundle.path, out=tmp_path / "r.parquet", point=point, batch_size=1
    )
    first = Scan(settings, stand_ins.open_slow)
    with pytest.raises(Stopped, match="on request"):
        first.run(lambda progress: first.stop() if progress.done >= 4 else None)
    other, same = tmp_path / "other.json", tmp_path / "same.json"
    same.write_bytes(point.read_bytes())
    document = json.loads(point.read_text())
    document["operating_point"]["threshold"] += 0.01
    other.write_text(json.dumps(document))
    with pytest.raises(Refused, match="differs in point, threshold"):
        Scan(replace(settings, point=other)).run()
    with pytest.raises(Refused, match="differs in pfa, point, threshold"):
        Scan(replace(settings, point=None)).run()
    assert Scan(replace(settings, point=same)).run().images == IMAGES + 3


def test_a_point_excludes_the_options_that_it_answers(point: Path, tmp_path: Path) -> None:
    for name, value in (("pfa", "0.1"), ("threshold", "1"), ("decision", "gbad")):
        for words in (["scan", "x"], ["decide", "x.parquet"]):
            given = [*words, "--out", str(tmp_path / "o"), "--point", str(point), f"--{name}", value]
            said = CliRunner().invoke(main, given)
            assert said.exit_code == 2
            assert f"--point and --{name} exclude each other" in said.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (None, "is not an operating point"),
        ({"kind": "recipe"}, "is not an operating point"),
        ({"format": 2}, "was written by another version"),
        ({"bundle_hash": "f" * 64}, "is of the model"),
        ({"threshold": float("nan")}, "holds values that no operating point has"),
        ({"threshold": 10**400}, "holds values that no operating point has"),
        ({"pfa": -0.1}, "holds values that no operating point has"),
        ({"class_thresholds": [0.5]}, "holds values that no operating point has"),
        ({"interval": [0.1]}, "holds values that no operating point has"),
        ({"decision": "oracle"}, "holds values that no operating point has"),
        ({"supported": "yes"}, "is not an operating point"),
    ],
    ids=str,
)
def test_a_point_that_cannot_be_trusted_is_refused(
    results: Path,
    tiny_bundle: Bundle,
    point: Path,
    tmp_path: Path,
    change: dict[str, Any] | None,
    sentence: str,
) -> None:
    document = json.loads(point.read_text())
    for name, value in (change or {}).items():
        (document if name in document else document["operating_point"])[name] = value
    point.write_text("{" if change is None else json.dumps(document))
    with pytest.raises(Refused, match=sentence):
        decide(DecideSettings(results=results, out=tmp_path / "n", model=tiny_bundle.path, point=point))
    assert not (tmp_path / "n").exists()


# --- refusals ---


def bad_files(results: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Write files of verdicts that do not serve, each with what is said of it."""
    lines = lines_of(results, 40)
    digest, uri, _, time = lines[0]

    def file(name: str, lines: list[tuple[str, ...]], **more: Any) -> Path:
        return written(folder / f"{name}.csv", lines, **more)

    return {
        "unknown image": (
            file("image", [*lines, ("0" * 64, "/archive/other\x1b.png", "threat", time)]),
            "line 42: .* holds no scored image with the SHA-256 of '/archive/other",
        ),
        "other results": (file("other", [("0" * 64, uri, "threat", time)]), "holds none of the images of"),
        "unknown value": (
            file("value", [*lines, (digest, uri, "maybe", time)]),
            "line 42: the verdict 'maybe' is none of threat, harmless, unsure",
        ),
        "two verdicts": (
            file("two", [*lines, (digest, uri, "harmless", time)]),
            "line 42: .* has another verdict in .*line 2",
        ),
        "no digest": (file("digest", [("12", uri, "threat", time)]), "line 2: '12' is not a SHA-256"),
        "missing value": (file("short", [(digest, uri)]), "line 2: 4 values are expected, not 2"),
        "none": (file("none", [(digest, uri, "", time)]), "holds no verdict"),
        "other columns": (file("head", lines, header="a,b,c,d"), "line 1: verdicts need the columns"),
        "not CSV": (folder / "results.parquet", "line 1: .* not"),
        "absent": (folder / "absent.csv", "absent.csv cannot be read"),
        "too few": (
            file("few", lines[:10]),
            r"each of the 14 .* 4 .* none \(the first at rank 11\): .* --top 14, .* or ask for --pfa 0\.0\d",
        ),
        "a gap": (file("gap", lines[:3] + lines[4:]), r"1 of them have none \(the first at rank 4\)"),
    }


def test_verdicts_that_do_not_serve_are_refused_in_a_sentence(
    results: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "results.parquet").write_bytes(results.read_bytes())
    out = tmp_path / "point.json"
    for what, (path, sentence) in bad_files(results, tmp_path).items():
        said = calibrate(results, path, out, "--model", tiny_bundle.path, "--pfa", 0.1)
        assert said.exit_code == 2, what
        assert said.stderr.startswith("gbad-batch: "), what
        assert said.stderr.count("\n") == 1, what
        assert "\x1b" not in said.stderr, what
        assert re.search(sentence, said.stderr), said.stderr
        assert not out.exists(), what


def test_too_few_images_for_a_rate_name_the_number_needed(
    results: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    verdicts = written(tmp_path / "v.csv", lines_of(results, 40))
    said = calibrate(results, verdicts, tmp_path / "p", "--model", tiny_bundle.path, "--pfa", 0.01)
    assert said.exit_code == 2
    assert "PFA 0.01 of the 110 harmless images in" in said.stderr
    assert (
        "is 1.1 false alarms among those judged, and a threshold needs 5: ask for --pfa 0.0455" in said.stderr
    )
    assert "judge a scan of more images, 4.6 times as many" in said.stderr
    said = calibrate(results, verdicts, tmp_path / "p", "--model", tiny_bundle.path, "--pfa", 0.0455)
    assert said.exit_code == 0, said.stderr


def test_other_models_and_outputs_are_refused(results: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    verdicts = written(tmp_path / "v.csv", lines_of(results, 40))
    other = write_bundle(tmp_path / "other", {**tiny.manifest(), "name": "other"}, tiny.files())
    said = calibrate(results, verdicts, tmp_path / "p", "--model", other.path)
    assert (said.exit_code, "is not the model of" in said.stderr) == (2, True)
    before = verdicts.read_bytes()
    given = ("--model", tiny_bundle.path, "--pfa", 0.1)
    for out, sentence in (
        (verdicts, "is not an operating point and is left as it is"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "p", "does not exist"),
    ):
        said = calibrate(results, verdicts, out, *given)
        assert (said.exit_code, sentence in said.stderr) == (2, True), said.stderr
    assert verdicts.read_bytes() == before
    for _ in range(2):  # an earlier point is replaced
        assert calibrate(results, verdicts, tmp_path / "p", *given).exit_code == 0
    table = pq.read_table(results)
    footer = read_footer(results)
    assert footer is not None
    pq.write_table(
        table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer | {"schema": 1})}), tmp_path / "o"
    )
    said = calibrate(tmp_path / "o", verdicts, tmp_path / "q", *given)
    assert (said.exit_code, "another version" in said.stderr) == (2, True)
    assert not (tmp_path / "q").exists()
