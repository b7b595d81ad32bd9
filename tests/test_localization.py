"""Where threats lie as phase I learns it: cells that follow the picture, and their loss by its formula."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gbad_batch.engine.datasets import Box
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.training.augment import Draw, ImageSettings, draw, training_images
from gbad_batch.engine.training.data import Labelled
from gbad_batch.engine.training.phases.localization import (
    IGNORED,
    LocalizationHead,
    cell_targets,
    localization_loss,
    moved_boxes,
)
from gbad_batch.engine.training.phases.windows import BoxedThreats
from gbad_batch.engine.training.settings import Augmentation

SIZE, CELLS = 128, 16
GUN, WRENCH = THREATS.index("gun"), THREATS.index("wrench")
FAR = Augmentation(flip=0.5, rotation=15.0, shift=0.1, scale=0.2, shear=10.0, turn=0.5)


@pytest.fixture
def bag(tmp_path: Path) -> Labelled:
    """Draw a white picture with a dark square, its gun, left of the middle."""
    picture = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(picture).rectangle((50, 30, 89, 69), fill=(20, 20, 20))
    picture.save(tmp_path / "bag.png")
    labels = np.zeros((1, 5), bool)
    labels[0, GUN] = True
    return Labelled((tmp_path / "bag.png",), labels, ("",), ("",), ((Box("gun", 50, 30, 40, 40),),))


@pytest.mark.parametrize("window", [None, 0.6])
def test_cells_follow_the_picture_through_windows_and_augmentation(bag: Labelled, window: float | None):
    boxed, settings = BoxedThreats(bag, np.arange(1)), ImageSettings(SIZE, (0,) * 3, (1,) * 3, FAR, 3)
    parts = None if window is None else boxed.draw(np.arange(1), window, (1,)).parts
    ways = set()
    for epoch in range(60):
        _, images = next(iter(training_images(bag.paths, [np.arange(1)], epoch, settings, parts)))
        drawn = draw(FAR, SIZE, (settings.seed, epoch, 0))
        ways.add((drawn.mirror, drawn.upended, drawn.transposed))
        found = boxed.of(0, None if parts is None else parts[0])
        assert found is not None
        targets = cell_targets(moved_boxes(found[0] * SIZE, drawn, SIZE), found[1], SIZE, CELLS)
        pitch = SIZE // CELLS
        shown = images[0].mean(dim=0).reshape(CELLS, pitch, CELLS, pitch).mean((1, 3)).numpy()
        assert shown[targets[GUN] == 1].max() < 0.7  # a corner of a sheared one may be bright
        assert shown[targets[GUN] == 0].min() > 0.4  # no cell that it fills is called empty
        assert not targets[WRENCH].any()
    assert len(ways) == 8


def test_a_thin_threat_has_the_cell_of_its_centre():
    targets = cell_targets(np.array([[60.0, 17.0, 61.0, 19.0]]), np.array([WRENCH]), SIZE, CELLS)
    assert np.argwhere(targets == 1).tolist() == [[WRENCH, 2, 7]]


def test_a_threat_that_is_half_outside_is_neither_there_nor_absent():
    targets = cell_targets(np.array([[-30.0, 40.0, 10.0, 60.0]]), np.array([GUN]), SIZE, CELLS)
    assert set(np.unique(targets[GUN])) == {IGNORED, 0.0}
    outside = cell_targets(np.array([[150.0, 150.0, 190.0, 190.0]]), np.array([GUN]), SIZE, CELLS)
    assert not (outside == 1).any()


def test_boxes_stay_where_nothing_moves():
    boxes = np.array([[10.0, 20.0, 30.0, 50.0]])
    still = Draw(np.array([[1, 0, 0], [0, 1, 0]], np.float32), mirror=False)
    assert np.allclose(moved_boxes(boxes, still, SIZE), boxes)
    assert np.allclose(moved_boxes(boxes, replace(still, mirror=True), SIZE), [[98, 20, 118, 50]])


def test_a_threat_without_a_box_says_nothing_of_any_cell(bag: Labelled):
    both = Labelled(bag.paths * 3, np.repeat(bag.labels, 3, 0), ("",) * 3, ("",) * 3, (*bag.boxes, (), ()))
    both.labels[2] = False
    boxed = BoxedThreats(both, np.arange(3))
    assert boxed.of(1, None) is None
    benign = boxed.of(2, None)
    assert benign is not None
    assert not len(benign[0])


def test_the_loss_is_the_focal_loss_of_its_paper_over_the_cells_with_a_threat():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 5, 4, 4)).astype(np.float32)
    targets = random.choice([0.0, 1.0, IGNORED], (2, 5, 4, 4), p=[0.6, 0.1, 0.3]).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    positive = -0.25 * (1 - p) ** 2 * np.log(p)
    negative = -0.75 * p**2 * np.log(1 - p)
    wanted = (positive[targets == 1].sum() + negative[targets == 0].sum()) / (targets == 1).sum()
    got = localization_loss([torch.from_numpy(logits)], [torch.from_numpy(targets)])
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    nothing = np.zeros_like(targets)
    twice = localization_loss(
        [torch.from_numpy(logits)] * 2, [torch.from_numpy(targets), torch.from_numpy(nothing)]
    )
    assert twice.item() == pytest.approx((wanted + (-0.75 * p**2 * np.log(1 - p)).sum()) / 2, rel=1e-5)


def test_cells_see_nothing_before_they_learn():
    head = LocalizationHead([8, 16, 24, 32])
    maps = [torch.rand(2, each, 64 // n, 64 // n) for each, n in ((8, 4), (16, 8), (24, 16), (32, 32))]
    found = head(maps)
    assert [tuple(each.shape) for each in found] == [(2, 5, 4, 4), (2, 5, 2, 2)]
    assert all(each.sigmoid().max().item() < 0.03 for each in found)
