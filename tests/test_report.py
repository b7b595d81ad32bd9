"""The report: a page that loads nothing, in which no name is markup, whose pictures are still the same."""

import base64
import hashlib
import io
import json
import os
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner, Result
from made_up_scan import THRESHOLD, add, png, scanned
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.row import THREATS

HOSTILE = [
    b"<_script><script>alert(1)<_script>.png",
    b"<img src=x onerror=alert(1)>.png",
    b"\" onload='alert(1)' x=\".png",
    "gnp.\u202egalf.png".encode(),
    "line\u2028break.png".encode(),
    b"new\nline\t.png",
    b"-->]]><!--.png",
    b"\xff\xfe.png",
    b"100%25 & ${data} \\u003c.png",
]


class Page(HTMLParser):
    """The elements of a report, and the text of its scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._within = ""
        self.feed(path.read_text("utf-8"))
        self.close()
        self.data: dict[str, Any] = json.loads(self.texts["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        if self._within in ("data", "script", "style"):
            self.texts[self._within] = self.texts.get(self._within, "") + data

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the name is HTMLParser's
        self._within = ""


def report(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with hostile names, equal bytes, failures, a tar and a compressed one."""
    folder = tmp_path_factory.mktemp("archive")
    pictures = [png(pixels) for pixels in tiny.pictures(len(HOSTILE) + 6, seed=21)]
    for name, data in zip(HOSTILE, pictures, strict=False):
        (folder / os.fsdecode(name)).write_bytes(data)
    *_, one, other, third, fourth, gone, changed = pictures
    for name in ("same-1.png", "same-2.png", "same-3.png"):
        (folder / name).write_bytes(one)
    (folder / "cut.png").write_bytes(one[:100])
    (folder / "empty.png").write_bytes(b"")
    with tarfile.open(folder / "plain.tar", "w") as tar:
        add(tar, "bags/other.png", other)
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as tar:
        add(tar, "third.png", third)
        add(tar, "fourth.png", fourth)
    (folder / "gone.png").write_bytes(gone)
    (folder / "changed.png").write_bytes(changed)
    return folder


@pytest.fixture(scope="module")
def results(archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the results of the archive; one image goes and another changes afterwards."""
    out = scanned(archive, tmp_path_factory.mktemp("results") / "results.parquet", tiny_bundle)
    (archive / "gone.png").unlink()
    with (archive / "changed.png").open("ab") as file:
        file.write(b"more")
    return out


@pytest.fixture(scope="module")
def page(results: Path, tiny_bundle: Bundle) -> Page:
    said = report(results, "--model", tiny_bundle.path)
    assert said.exit_code == 0, said.stderr
    path = results.parent / "report.html"
    assert said.stdout == f"Report: {path}\n"
    return Page(path)


def test_the_page_loads_nothing_and_lets_only_its_own_script_run(page: Page) -> None:
    for tag, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "action", "srcset", "style", "srcdoc"}, tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.texts["script"] + page.texts["style"]) == [
        "http://www.w3.org"  # the namespace of SVG, which nobody fetches
    ]
    assert not re.search(r"url\(|@import|innerHTML|insertAdjacent|eval\(", page.texts["script"])
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in page.elements
        if tag == "meta" and "http-equiv" in attributes
    ]
    digest = base64.b64encode(hashlib.sha256(page.texts["script"].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_no_name_is_markup(page: Page, results: Path) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2  # the data and the page's own
    assert not {"img", "iframe", "object", "a", "base", "link"} & set(tags)
    assert not re.search("[<>&'\u2028\u2029]", page.texts["data"])
    shown = {entry["uri"] for entry in page.data["entries"]}
    table = pq.read_table(results)
    ok = [row["uri"] for row in table.select(["uri", "status"]).to_pylist() if row["status"] == "ok"]
    assert shown == {uri for uri in ok if not uri.endswith(("same-2.png", "same-3.png"))}


def test_entries_fall_by_score_and_equal_bytes_are_one(page: Page) -> None:
    entries = page.data["entries"]
    assert [e["score"] for e in entries] == sorted((e["score"] for e in entries), reverse=True)
    copied = {Path(e["uri"]).name: (e["copies"], [Path(p).name for p in e["places"]]) for e in entries}
    assert copied.pop("same-1.png") == (3, ["same-2.png", "same-3.png"])
    assert {many for many, _ in copied.values()} == {1}


def test_pictures_come_from_folders_and_tars_and_what_changed_is_said(page: Page) -> None:
    found = {Path(entry["uri"]).name: entry for entry in page.data["entries"]}
    missing = {name: entry["gone"] for name, entry in found.items() if entry["gone"]}
    assert missing == {
        "gone.png": "the file is no longer there",
        "changed.png": "the file has changed since the scan: its SHA-256 differs",
    }
    names = {"other.png", "packed.tar.gz!third.png", "packed.tar.gz!fourth.png", "same-1.png"}
    assert names <= found.keys()
    for name, entry in found.items():
        if name not in missing:
            start, _, data = entry["picture"].partition(",")
            assert start == "data:image/webp;base64"
            assert Image.open(io.BytesIO(base64.b64decode(data))).size == (tiny.SIZE, tiny.SIZE)


def test_counts_are_those_of_the_rows(page: Page, results: Path) -> None:
    table = pq.read_table(results)
    totals, thresholds = page.data["totals"], page.data["thresholds"]
    scores = np.array([score for score in table["anomaly_score"].to_pylist() if score is not None])
    assert (totals["scored"], totals["failed"]) == (len(scores), 2)
    assert totals["alarms"] == sum(filter(None, table["anomalous"].to_pylist()))
    assert {f["status"]: f["count"] for f in page.data["failures"]} == {"truncated": 1, "empty": 1}
    low, high, over = (thresholds[name] for name in ("low", "high", "over"))
    for step in (0, 1, 100, 239, 480):
        edge = low + (high - low) * step / 480
        assert over[step] == (scores >= edge).sum()
    assert over[0] == len(scores)
    assert low < page.data["point"]["threshold"] < high
    benign = thresholds["benign"]
    assert benign[0] >= benign[-1] >= 0
    assert benign == sorted(benign, reverse=True)
    plane = page.data["plane"]
    assert sum(plane["counts"]) + plane["beyond"] == len(scores)
    assert len(plane["scores"]) == plane["wide"] * plane["high"]  # of `gbad`, which losses decide alone


def test_what_is_left_out_is_said(results: Path, tmp_path: Path) -> None:
    said = report(results, "--top", 3, "--out", tmp_path / "three.html")
    assert said.exit_code == 0, said.stderr
    data = Page(tmp_path / "three.html").data
    assert len(data["entries"]) == data["totals"]["shown"] == 3
    assert data["totals"]["cut"]
    assert data["totals"]["shown_rows"] < data["totals"]["scored"]
    assert data["thresholds"]["benign"] is None  # the default model is not the scan's
    assert not data["provenance"]["with_model"]


def test_an_entry_may_be_a_bag_with_its_views(results: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "bags.html"
    pattern = r"/(?:plain|(packed)|cut|(empty))"  # two members of a tar, and an image that failed
    words = ("--group-by", pattern, "--model", tiny_bundle.path, "--out", out)
    said = report(results, *words)
    assert said.exit_code == 0, said.stderr
    data = Page(out).data
    table = pq.read_table(results).to_pylist()
    scored = {row["uri"]: row for row in table if row["anomaly_score"] is not None}
    entries = {entry["bag"]: entry for entry in data["entries"]}
    bags = [("packed" if "packed" in uri else uri) for uri in scored]
    assert set(entries) == set(bags)
    packed = entries["packed"]
    views = [packed, *packed["views"]]
    assert [Path(view["uri"]).suffix for view in views] == [".png"] * 2
    assert packed["score"] == max(view["score"] for view in views)
    assert all(view["picture"] for view in views)
    assert data["bags"]["count"] == len(set(bags)) + 2
    assert data["bags"]["incomplete"] == 2
    scores = [(uri, row["anomaly_score"]) for uri, row in scored.items() if row["anomaly_score"] >= THRESHOLD]
    assert data["bags"]["alarms"] == len({"packed" if "packed" in uri else uri for uri, _ in scores})
    faces = [entry["score"] for entry in data["entries"]]
    assert faces == sorted(faces, reverse=True)
    said = report(results, "--group-by", "packed", "--sample", 2, "--out", out)
    assert (said.exit_code, "--sample draws images, not bags" in said.stderr) == (2, True)
    said = report(results, "--group-by", "packed", "--top", 2, "--out", out)
    data = Page(out).data
    assert (said.exit_code, len(data["entries"]), data["totals"]["cut"]) == (0, 2, True)


def test_heat_is_the_class_map_of_the_scans_model(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "mapped", tiny.mapped_manifest(), tiny.mapped_files())
    (tmp_path / "bags").mkdir()
    for name, pixels in zip(("one.png", "other.jpg"), tiny.pictures(2, seed=4), strict=True):
        Image.fromarray(pixels).save(tmp_path / "bags" / name)
    out = tmp_path / "results.parquet"
    settings = ScanSettings(sources=(tmp_path / "bags",), out=out, model=bundle.path, device="cpu", threads=1)
    Scan(settings).run()
    assert report(out, "--model", bundle.path).exit_code == 0
    for entry in Page(tmp_path / "report.html").data["entries"]:
        heat = entry["heat"]
        levels = np.frombuffer(base64.b64decode(heat["levels"]), np.uint8)
        levels = levels.reshape(len(THREATS), heat["high"], heat["wide"])
        np.testing.assert_allclose(levels.max((1, 2)) / 255, entry["p"], atol=0.003)


def test_other_files_stay_and_a_report_is_replaced(results: Path, tmp_path: Path) -> None:
    before = results.read_bytes()
    said = report(results, "--out", results)
    assert said.exit_code == 2
    assert "is not a report and is left as it is" in said.stderr
    assert results.read_bytes() == before
    out = tmp_path / "page.html"
    for _ in range(2):
        assert report(results, "--top", 1, "--out", out).exit_code == 0
    other = write_bundle(tmp_path / "other", tiny.manifest() | {"name": "other"}, tiny.files())
    said = report(results, "--model", other.path, "--out", tmp_path / "none.html")
    assert said.exit_code == 2
    assert "is not the model of" in said.stderr
    (tmp_path / "list.txt").write_text("no results")
    said = report(tmp_path / "list.txt", "--out", tmp_path / "none.html")
    assert said.exit_code == 2
    assert "does not hold results of a scan" in said.stderr
    assert not (tmp_path / "none.html").exists()
