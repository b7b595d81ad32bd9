"""`python -m benchmarks likeness`: an archive is like itself, and what is measured is measured right."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks.__main__ import main
from benchmarks.quality import likeness
from benchmarks.quality.appearance import appearance_of
from benchmarks.quality.outlines import shape_of, synthetic_outlines
from PIL import Image

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.synth import SynthSettings, write_archive

SHAPES = ("_area_ks", "_elongation_ks", "_fill_ks")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("likeness") / "archive"
    write_archive(out, SynthSettings(count=24, seed=7, positive=0.5))
    return out


@pytest.fixture(scope="module")
def drawn(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw the archive's own outlines in the form that real ones come in."""
    folder = tmp_path_factory.mktemp("drawn")
    for k, (name, mask) in enumerate(synthetic_outlines(archive / "boxes.json")):
        Image.fromarray(mask).save(folder / f"P{k:05d}_{name.capitalize()}_00.png")
    return folder


def compare(out: Path, real: Path, masks: Path) -> dict[str, float]:
    report = likeness.run(argparse.Namespace(out=out, real=real, masks=masks))
    return {figure.name: figure.value for figure in report.figures}


@pytest.mark.slow
def test_an_archive_is_like_itself(archive: Path, drawn: Path, tmp_path: Path) -> None:
    file = tmp_path / "likeness.json"
    words = ["likeness", str(archive), str(archive / "images"), str(drawn), "--json", str(file)]
    assert main(words) in (0, 1)
    found = json.loads(file.read_text())
    shapes = [found[name] for name in found if name.endswith(SHAPES)]
    assert len(shapes) >= 9
    assert not any(shapes)
    assert found["patch_auc"] <= 0.6
    assert "of each are needed" in found["not_run"]["guard_auc"]


def test_outlines_are_run_lengths_of_the_whole_picture(archive: Path) -> None:
    found = json.loads((archive / "boxes.json").read_text())
    sizes = {image["id"]: [image["height"], image["width"]] for image in found["images"]}
    masks = [mask for _, mask in synthetic_outlines(archive / "boxes.json")]
    for threat, mask in zip(found["annotations"], masks, strict=True):
        assert threat["segmentation"]["size"] == sizes[threat["image_id"]]
        assert sum(threat["segmentation"]["counts"]) == np.prod(sizes[threat["image_id"]])
        assert mask.sum() == threat["area"]


@pytest.mark.slow
def test_nothing_to_compare_is_refused(archive: Path, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="at least 4"):
        compare(archive, tmp_path, drawn)
    with pytest.raises(Refused, match="cannot be read"):
        list(synthetic_outlines(tmp_path / "boxes.json"))
    with pytest.raises(Refused, match="no outlines"):
        compare(archive, archive / "images", tmp_path)


def test_a_shape_is_measured_with_its_holes_filled() -> None:
    y, x = np.mgrid[:100, :200]
    ring = (np.hypot((x - 100) / 2, y - 50) < 30) & (np.hypot((x - 100) / 2, y - 50) > 20)
    shape = shape_of(ring)
    assert shape.elongation == pytest.approx(2, rel=0.03)
    assert shape.fill == pytest.approx(np.pi / 4, rel=0.03)
    assert shape.area == pytest.approx(np.pi * 30 * 60 / 20_000, rel=0.03)


def test_two_things_on_a_white_belt_are_two_regions(tmp_path: Path) -> None:
    pixels = np.full((300, 400, 3), 255, np.uint8)
    for top, left in ((40, 40), (150, 250)):
        pixels[top : top + 100, left : left + 100] = (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "two.png")
    seen = appearance_of(tmp_path / "two.png", np.random.default_rng(0))
    assert (seen.grey, seen.regions) == (False, 2)
    assert seen.foreground == pytest.approx(1 / 6)
    np.testing.assert_allclose(seen.lab[0], (32.3, 79.2, -107.9), atol=0.1)  # blue of sRGB under D65


def test_what_differs_is_told_apart_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    features, positive = random.normal(size=(400, 3)), np.arange(400) < 200
    folds = random.permutation(400) % 5
    assert likeness.separability(features, positive, folds) == pytest.approx(0.5, abs=0.1)
    assert likeness.separability(features * (1 + 4 * positive[:, None]), positive, folds) > 0.9


@pytest.mark.real
@pytest.mark.slow
def test_synthetic_threats_are_shaped_and_sized_like_real_ones(tmp_path: Path) -> None:
    data = os.environ.get("GBAD_REAL_DATA")
    if not data:
        pytest.skip("GBAD_REAL_DATA is not set")
    out = tmp_path / "out"
    write_archive(out, SynthSettings(count=120, seed=1, positive=1.0, class_shares=(1, 1, 1, 1, 1)))
    found = compare(out, Path(data) / "sixray-samples", Path(data) / "sixray-masks")
    shapes = [found[name] for name in found if name.endswith(SHAPES)]
    assert len(shapes) == 15
    # n is about 40 a class: the 5 % point of the distance between equal laws is 0.25 there
    assert np.mean(shapes) < 0.25
    assert found["patch_auc"] < 0.95
