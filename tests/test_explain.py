"""Explanations: the map's pooling is the class's score, regions lie where it is hot, and files say so."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
from benchmarks.quality.explain import WAYS, Players, boxed, covered, inside
from click.testing import CliRunner, Result
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.decode import DecodeLimits
from gbad_batch.engine.explain import Explainer, overlay, regions_of
from gbad_batch.engine.row import THREATS, Row
from gbad_batch.engine.runtime.class_maps import ClassMaps
from gbad_batch.engine.synth import SynthSettings, write_archive


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "mapped"
    return write_bundle(folder, tiny.mapped_manifest(), tiny.mapped_files())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write a bundle whose graph is exported from the model itself, as training does."""
    import torch_bundle  # here, since the other tests need no torch

    folder = tmp_path_factory.mktemp("bundles") / "trained"
    return write_bundle(
        folder, torch_bundle.manifest(torch_bundle.PEAKED), torch_bundle.files(torch_bundle.PEAKED)
    )


def explain(*words: object) -> Result:
    return CliRunner().invoke(main, ["explain", *map(str, words)])


def pictures(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"bag {number}.{'jpg' if number % 2 else 'png'}" for number in range(count)]
    for path, pixels in zip(paths, tiny.pictures(count, seed=9), strict=True):
        Image.fromarray(pixels).resize((200, 120)).save(path)
    return paths


def test_the_maximum_of_a_map_is_the_logit_on_100_images(trained: Bundle) -> None:
    maps = ClassMaps(trained, threads=1)(tiny.pictures(100, seed=1))
    assert maps.places.shape == (100, 5, 8, 8)
    assert np.abs(maps.places.max((2, 3)) - maps.logits).max() <= 1e-4


def test_an_explanation_gives_the_probabilities_of_a_scan(mapped: Bundle, tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, 1)
    settings = ScanSettings(sources=(path,), model=mapped.path, device="cpu", precision="fp32", threads=1)
    (row,) = Scan(settings).rows()
    found = Explainer(mapped, DecodeLimits(), threads=1)(Row(str(path)), path.read_bytes())
    assert found is not None
    assert found.size == (200, 120)
    scanned = [getattr(row, f"p_{threat}") for threat in THREATS]
    np.testing.assert_allclose(found.probabilities, scanned, atol=1e-4)
    np.testing.assert_allclose(found.places.max((1, 2)), scanned, atol=1e-4)


def test_regions_are_the_hot_parts_that_touch_in_pixels_of_the_picture() -> None:
    places = np.zeros((5, 4, 4), np.float32)
    places[0, 0, 0], places[0, 1, 1] = 0.8, 0.6  # touch at a corner
    places[0, 3, 3] = 0.7
    places[2, 2, 0] = 0.9
    wrench, one, other = regions_of(places, (0.5,) * 5, (400, 80))
    assert (wrench.threat, wrench.box, wrench.hottest) == ("wrench", (0, 40, 100, 20), (50, 50))
    assert (one.threat, one.box, one.hottest) == ("gun", (0, 0, 200, 40), (50, 10))
    assert (other.probability, other.box) == (pytest.approx(0.7), (300, 60, 100, 20))
    assert regions_of(places, (0.95,) * 5, (400, 80)) == []


def test_an_overlay_changes_the_picture_where_it_is_hot_only() -> None:
    pixels = np.full((80, 400, 3), 200, np.uint8)
    places = np.zeros((5, 4, 4), np.float32)
    places[1, 3, 3] = 1
    drawn = np.asarray(overlay(pixels, places, regions_of(places, (0.5,) * 5, (400, 80))))
    assert drawn.shape == pixels.shape
    assert (drawn[:40, :200] == 200).all()
    assert (drawn[62:78, 320:380] != 200).any(2).all()


def test_the_command_writes_overlays_and_regions(mapped: Bundle, tmp_path: Path) -> None:
    folder, out = tmp_path / "bags", tmp_path / "looked"
    folder.mkdir()
    paths = pictures(folder, 2)
    (folder / "cut.png").write_bytes(paths[0].read_bytes()[:200])
    said = explain(folder, "--model", mapped.path, "--out", out)
    assert (said.exit_code, said.stderr) == (3, "")
    assert "3 images, 1 of them unreadable" in said.stdout
    written = json.loads((out / "regions.json").read_text())
    assert written["bundle_hash"] == mapped.hash
    first, second, cut = written["images"]
    assert (cut["status"], cut["image"]) == ("truncated", str(folder / "cut.png"))
    assert [first["overlay"], second["overlay"]] == ["0001-bag_0.png", "0002-bag_1.png"]
    with Image.open(out / first["overlay"]) as overlay:
        assert overlay.size == (first["width"], first["height"]) == (200, 120)
    assert set(first["classes"]) == set(THREATS)
    for region in first["regions"]:
        x, y, width, height = region["box"]
        assert x <= region["hottest"][0] <= x + width
        assert y <= region["hottest"][1] <= y + height
        assert region["probability"] >= written["thresholds"][region["threat"]]
    again = explain(paths[0], "--model", mapped.path, "--out", out)
    assert again.exit_code == 2
    assert "name a new or empty folder" in again.stderr


def test_a_model_without_a_class_map_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, 1)
    said = explain(path, "--model", tiny_bundle.path, "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert "has no class map" in said.stderr
    assert not (tmp_path / "out").exists()


def test_games_are_played_for_each_class_of_an_image(trained: Bundle, tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", SynthSettings(count=2, positive=1.0, seed=3))
    players, images = Players(trained, threads=1), list(boxed(tmp_path / "archive"))
    assert len(images) == 2
    games = [list(players(path, boxes)) for path, boxes in images]
    assert [len(each) for each in games] == [len(boxes) for _, boxes in images]
    for game in (game for each in games for game in each):
        assert set(game.hit) == set(WAYS)
        assert 0 < game.hit["chance"] < 1
        assert (game.left is not None) == game.detected
        assert game.left is None or min(game.left.values()) > 0


def test_grad_cam_weighs_each_channel_by_its_slope(trained: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads are those of a linear model, whose slopes are known."""
    import torch

    players = Players(trained, threads=1)
    network = players._model.network
    slopes = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(network, "heads", lambda maps: (None, maps[-1].mean((2, 3)) @ slopes.T))
    side = trained.manifest.architecture.input_size
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    with torch.no_grad():
        last = players._model.maps(torch.from_numpy(pixels)[None])[-1][0]
    expected = torch.einsum("c,chw->hw", slopes[2], last).clamp(min=0) / last[0].numel()
    assert players.grad_cam(pixels, 2) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-6)


def test_points_and_shares_are_those_of_boxes() -> None:
    boxes = [(10.0, 10.0, 20.0, 5.0), (10.0, 10.0, 10.0, 10.0)]  # overlap in 10 x 5
    assert inside((30, 15), boxes)
    assert not inside((25, 16), boxes)
    assert covered(boxes, (100, 50)) == pytest.approx(150 / 5000)
