"""The report in a browser: operated as an analyst does, and watched as an auditor would."""

import csv
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner
from made_up_scan import THRESHOLD, add, png, scanned
from PIL import Image

from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.commands.cli import main

sync_api = pytest.importorskip("playwright.sync_api")
Axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
IMAGES = 64
PAYLOADS = (  # each sets a mark if it runs; members of a tar may be named anything
    "<script>window.ran=1</script>",
    "</script><script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    "<svg/onload=window.ran=1>",
    '" onmouseover="window.ran=1" autofocus onfocus="window.ran=1',
    "' onclick='window.ran=1",
    "javascript:window.ran=1",
    "</style><style>*{background:url(http://tracker.invalid/)}</style>",
    "<iframe src=javascript:parent.ran=1></iframe>",
    "${window.ran=1}",
    "{{constructor.constructor('window.ran=1')()}}",
    "]]><!--<script>window.ran=1</script>",
    "\u202egnp.exe\u202c",
    "\u2066\u2069\u200b\ufeff",
    "a\nb\r\nc\td\x1b[31m\x07",
    "\u2028window.ran=1\u2029",
    "<base href=http://tracker.invalid/>",
    "\udcff\udcfe<script>window.ran=1</script>",  # no UTF-8
    "%3Cscript%3Ewindow.ran=1%3C/script%3E",
    "</title></textarea></template><script>window.ran=1</script>",
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


def report(results: Path, *words: object) -> Path:
    said = CliRunner().invoke(main, ["report", str(results), *map(str, words)])
    assert said.exit_code == 0, said.stderr
    return Path(said.stdout.removeprefix("Report: ").rstrip("\n"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write a bundle with a class map, so that pages have heat."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "m", tiny.mapped_manifest(), tiny.mapped_files())


@pytest.fixture(scope="module")
def results(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scan bags of two views each, copies of one image, and files that fail."""
    folder = tmp_path_factory.mktemp("archive")
    for k, picture in enumerate(tiny.pictures(IMAGES, seed=31)):
        Image.fromarray(picture).save(folder / f"bag{k // 2:02d}_{'top' if k % 2 else 'side'}.png")
    for copy in ("copy1.png", "copy2.png"):
        (folder / copy).write_bytes((folder / "bag03_top.png").read_bytes())
    (folder / "bag04_back.png").write_bytes(b"no picture")
    (folder / "bag05_back.png").touch()
    return scanned(folder, tmp_path_factory.mktemp("results") / "results.parquet", bundle)


@pytest.fixture(scope="module")
def path(results: Path, bundle: Bundle) -> Path:
    return report(results, "--model", bundle.path)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@dataclass
class Watched:
    """What a page did besides showing itself."""

    faults: list[str] = field(default_factory=list)  # console warnings and errors, exceptions, dialogs
    requests: list[str] = field(default_factory=list)  # beyond the file and what it holds


@contextmanager
def opened(chromium: Any, path: Path, *, width: int = 1280, **options: Any) -> Iterator[tuple[Any, Watched]]:
    """Open a report; leaving fails if the page complained, asked a network, or ran a name."""
    watched = Watched()
    context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            watched.faults.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")) and request.url != path.as_uri():
            watched.requests.append(request.url)

    def spoke(dialog: Any) -> None:
        watched.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", heard)
    page.on("pageerror", lambda error: watched.faults.append(str(error)))
    page.on("dialog", spoke)
    page.on("request", asked)
    try:
        page.goto(path.as_uri())
        yield page, watched
        assert page.evaluate("typeof window.ran") == "undefined"
    finally:
        context.close()
    assert not watched.faults, "\n".join(watched.faults)
    assert watched.requests == []


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def current(page: Any) -> int:
    """Return the position of the selected image among those that are listed."""
    flags = page.locator("#list button").evaluate_all("all => all.map(b => b.getAttribute('aria-current'))")
    return flags.index("true")


# --- operating it ---


def test_the_operating_point_is_dragged(chromium: Any, path: Path) -> None:
    thresholds = data_of(path)["thresholds"]
    with opened(chromium, path) as (page, _):
        box = page.locator("#bars").bounding_box()
        middle = box["y"] + box["height"] / 2
        before = page.inner_text("#readout")
        page.mouse.move(box["x"] + 0.5 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.3 * box["width"], middle, steps=5)
        page.mouse.up()
        step = int(page.input_value("#threshold"))
        assert step == pytest.approx(0.3 * 480, abs=2)
        assert page.inner_text("#readout strong") == f"{thresholds['over'][step]} alarms"
        assert before != page.inner_text("#readout")
        assert page.locator("#list .alarm-text").count() == sum(
            entry["score"] >= thresholds["low"] + (thresholds["high"] - thresholds["low"]) * step / 480
            for entry in data_of(path)["entries"]
        )
        page.focus("#threshold")
        page.keyboard.press("ArrowRight")
        assert int(page.input_value("#threshold")) == step + 1
        assert page.get_attribute("#threshold", "aria-valuetext").endswith(
            f"{thresholds['over'][step + 1]} alarms"
        )
        page.click("#reset")
        assert page.inner_text("#readout") == before


def test_filters_and_sorting(chromium: Any, path: Path) -> None:
    entries = data_of(path)["entries"]
    with opened(chromium, path) as (page, _):
        shown = page.locator("#list li")
        assert shown.count() == len(entries) == IMAGES
        page.fill("#find", "BAG07")
        assert shown.count() == 2
        page.fill("#find", "copy2")  # a place of equal bytes
        assert shown.count() == 1
        page.fill("#find", "")
        page.select_option("#which", "alarm")
        assert shown.count() == sum(entry["score"] >= THRESHOLD for entry in entries)
        page.select_option("#class", "gun")
        guns = [entry for entry in entries if entry["score"] >= THRESHOLD and entry["p"][0] >= 0.5]
        assert shown.count() == len(guns)
        page.select_option("#sort", "p")
        first = page.get_attribute("#list li:first-child .name", "title")
        assert first == max(guns, key=lambda entry: entry["p"][0])["uri"]


def download(page: Any, to: Path) -> list[dict[str, str]]:
    """Press the key for the verdicts; returns the lines of the file."""
    with page.expect_download() as started:
        page.keyboard.press("d")
    assert re.fullmatch(r"verdicts-.*\.csv", started.value.suggested_filename)
    started.value.save_as(to)
    with to.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_gallery_is_walked_by_keyboard(chromium: Any, path: Path) -> None:
    with opened(chromium, path) as (page, _):
        assert current(page) == 0
        for _ in range(3):
            page.keyboard.press("j")
        page.keyboard.press("k")
        assert current(page) == 2
        assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
        page.keyboard.press("Enter")
        assert page.locator("body.large #picture img").is_visible()
        page.keyboard.press("h")
        assert page.locator("#picture canvas").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("body.large").count() == 0
        page.keyboard.press("?")
        assert page.locator("#keys").is_visible()


def test_verdicts_are_kept_downloaded_and_learned_from(
    chromium: Any, path: Path, results: Path, bundle: Bundle, tmp_path: Path
) -> None:
    entries, two, more = data_of(path)["entries"], tmp_path / "two.csv", tmp_path / "more.csv"

    def calibrated(verdicts: Path) -> Any:
        words = ["calibrate", results, "--model", bundle.path, "--pfa", 0.1, "--verdicts", verdicts]
        return CliRunner().invoke(main, [*map(str, words), "--out", str(tmp_path / "point.json"), "--json"])

    with opened(chromium, path, accept_downloads=True) as (page, _):
        page.keyboard.press("1")  # threat, and on to the next image
        page.keyboard.press("v")
        page.keyboard.press("v")  # harmless, and stay
        assert current(page) == 1
        assert page.inner_text("#count").endswith("2 verdicts given")
        lines = [(line["sha256"], line["uri"], line["verdict"]) for line in download(page, two)]
        judged = zip(entries, ("threat", "harmless"), strict=False)
        assert lines == [(entry["sha256"], entry["uri"], verdict) for entry, verdict in judged]
        said = calibrated(two)
        assert (said.exit_code, "needs a verdict on each of" in said.stderr) == (2, True)
        page.reload()
        assert page.inner_text("#count").endswith("2 verdicts given")
        for _ in range(20):
            page.keyboard.press("2")
        download(page, more)
    said = calibrated(more)
    assert said.exit_code == 0, said.stderr
    assert json.loads(said.stdout)["given"] == {"threat": 0, "harmless": 20, "unsure": 0}
    assert (tmp_path / "point.json").exists()


def test_a_sample_of_the_alarms_says_so_in_its_verdicts(
    chromium: Any, results: Path, bundle: Bundle, tmp_path: Path
) -> None:
    path = report(results, "--model", bundle.path, "--sample", 9, "--out", tmp_path / "sample.html")
    with opened(chromium, path, accept_downloads=True) as (page, _):
        assert page.locator("#list li").count() == 9
        assert page.inner_text("#left-out").startswith("9 alarms drawn at random of the")
        for _ in range(9):
            page.keyboard.press("2")
        lines = download(page, tmp_path / "v.csv")
    assert [line["sample"] for line in lines] == ["9"] * 9


def test_a_bag_shows_its_views_and_a_verdict_holds_for_each(
    chromium: Any, results: Path, bundle: Bundle, tmp_path: Path
) -> None:
    path = report(
        results, "--model", bundle.path, "--group-by", r"(bag\d+)_", "--out", tmp_path / "bags.html"
    )
    with opened(chromium, path, accept_downloads=True) as (page, _):
        page.fill("#find", "bag04")
        page.locator("#list button").click()
        assert page.inner_text("#detail h3 .name >> nth=0") == "bag04"
        views = page.locator("#detail .views figure")
        assert views.count() == 2
        assert "not_an_image" in "".join(views.all_inner_texts())
        page.keyboard.press("1")
        lines = download(page, tmp_path / "v.csv")
    assert sorted(Path(line["uri"]).name for line in lines) == ["bag04_side.png", "bag04_top.png"]
    assert {line["verdict"] for line in lines} == {"threat"}


# --- watching it ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_serious_violation(chromium: Any, path: Path, scheme: str, width: int) -> None:
    with opened(chromium, path, width=width, color_scheme=scheme) as (page, _):
        for state in ("", "Enter", "Escape", "?"):
            if state:
                page.keyboard.press(state)
            found = Axe().run(page).response["violations"]
            serious = [
                f"{each['id']}: {node['html'][:160]} {node['failureSummary']}"
                for each in found
                if each["impact"] in ("serious", "critical")
                for node in each["nodes"]
            ]
            assert serious == [], state


@pytest.mark.parametrize("width", [320, 390, 1280, 2560])
def test_nothing_is_wider_than_the_window(chromium: Any, path: Path, width: int) -> None:
    with opened(chromium, path, width=width) as (page, _):
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        page.emulate_media(media="print")
        assert not page.locator("#tools").is_visible()
        assert page.locator("#list li").first.is_visible()


def test_two_hundred_hostile_names_run_nothing(chromium: Any, bundle: Bundle, tmp_path: Path) -> None:
    names = [f"{k}{payload}.png" for k, payload in enumerate(PAYLOADS * 10)]
    with tarfile.open(tmp_path / "hostile.tar", "w") as tar:
        for name, picture in zip(names, tiny.pictures(len(names), seed=77), strict=True):
            add(tar, name, png(picture))
        for payload in PAYLOADS:  # that fail, and so stand among the failures
            add(tar, f"failed {payload}.png", b"no picture")
    results = scanned(tmp_path, tmp_path / "r.parquet", bundle)
    table = pq.read_table(results, columns=["status", "anomaly_score"])
    assert np.isfinite(table["anomaly_score"].to_numpy()).sum() == len(names) == 200
    path = report(results, "--model", bundle.path, "--out", tmp_path / "hostile.html")
    with opened(chromium, path) as (page, _):
        assert page.locator("#list li").count() == 200
        page.locator("summary").first.click()
        for k in range(200):
            page.keyboard.press("j")
            if not k % 20:
                page.hover("#detail h3")
        kinds = page.evaluate(
            "[...new Set([...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase()))]"
        )
        assert not {"iframe", "a", "base", "object", "embed", "link"} & set(kinds)
        assert page.locator("script").count() == 2
        assert page.locator("style").count() == 1
        attributes = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        assert not [name for name in page.evaluate(attributes) if name.startswith("on")]
        title = page.get_attribute("#list li:first-child .name", "title")
        assert not re.search("[\u202e\u2066\u200b\n\x1b\u2028]", title)


@pytest.mark.parametrize(
    "addition",
    [
        "<script>window.ran = 1</script>",
        "<img src='http://tracker.invalid/x.png'>",
        "<script src='beside.js'></script>",
    ],
)
def test_whoever_tampers_with_the_page_is_seen(
    chromium: Any, path: Path, tmp_path: Path, addition: str
) -> None:
    (tmp_path / "beside.js").write_text("window.ran = 1")
    tampered = tmp_path / "report.html"
    tampered.write_text(path.read_text().replace("<main>", f"<main>{addition}"))
    with pytest.raises(AssertionError, match=r"violates|Content Security Policy"), opened(chromium, tampered):
        pass  # its policy stops what it was not made with, and says so


def test_axe_sees_a_control_without_a_name(chromium: Any, path: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "report.html"
    spoiled.write_text(path.read_text().replace('aria-label="Threshold on the anomaly score"', ""))
    with opened(chromium, spoiled) as (page, _):
        found = Axe().run(page).response["violations"]
    assert "label" in {each["id"] for each in found if each["impact"] in ("serious", "critical")}
