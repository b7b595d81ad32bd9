"""Windows around boxed threats: what is seen of an image, and what its label then says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbad_batch.engine.datasets import Box
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.training.augment import ImageSettings, training_images
from gbad_batch.engine.training.data import Labelled
from gbad_batch.engine.training.phases.windows import BoxedThreats
from gbad_batch.engine.training.settings import Stage, train_settings

WIDTH, HEIGHT = 200, 100
GUN, KNIFE = THREATS.index("gun"), THREATS.index("knife")


@pytest.fixture
def bags(tmp_path: Path) -> Labelled:
    """Make a bag with a gun on the left and a knife on the right, a benign one, and a gun that has no box."""
    picture = np.full((HEIGHT, WIDTH, 3), 250, np.uint8)
    picture[40:60, 20:40], picture[10:20, 150:190] = (200, 0, 0), (0, 0, 200)
    paths = tuple(tmp_path / f"{k}.png" for k in range(3))
    for path in paths:
        Image.fromarray(picture).save(path)
    labels = np.zeros((3, 5), bool)
    labels[0, [GUN, KNIFE]] = labels[2, GUN] = True
    boxes = ((Box("gun", 20, 40, 20, 20), Box("knife", 150, 10, 40, 10)), (), ())
    return Labelled(paths, labels, ("",) * 3, ("",) * 3, boxes)


def test_a_window_holds_a_threat_and_its_label_what_is_inside(bags: Labelled):
    boxed = BoxedThreats(bags, np.arange(3))
    seen = set()
    for seed in range(40):
        parts, labels = boxed.draw(np.arange(3), 0.4, (seed,))
        left, top, width, height = parts[0].tolist()
        assert min(left, top) >= 0
        assert max(left + width, top + height) <= 1 + 1e-6
        assert (width, height) == pytest.approx((0.4, 0.4))
        holds_gun = left <= 0.1 + 1e-6 and left + width >= 0.2 - 1e-6
        assert labels[0, GUN] == (holds_gun and top <= 0.5 and top + height >= 0.5)
        assert labels[0].any()
        seen |= set(np.flatnonzero(labels[0]))
        assert not labels[1].any()  # benign, and seen where a threat might be
        assert parts[1, 2] == pytest.approx(0.4)
        assert parts[2].tolist() == [0, 0, 1, 1]  # nobody knows where its gun is
        assert labels[2, GUN]
    assert seen == {GUN, KNIFE}


def test_windows_belong_to_seed_epoch_and_image(bags: Labelled):
    boxed = BoxedThreats(bags, np.arange(3))
    first, again = (boxed.draw(np.arange(3), 0.4, (1, 2)).parts for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[1], boxed.draw(np.array([1]), 0.4, (1, 2)).parts[1])
    assert not np.array_equal(first, boxed.draw(np.arange(3), 0.4, (1, 3)).parts)


def test_a_threat_larger_than_the_window_widens_it(bags: Labelled):
    wide = (Box("gun", 10, 10, 180, 20),)
    labels = bags.labels.copy()
    labels[0, KNIFE] = False
    boxed = BoxedThreats(replace(bags, labels=labels, boxes=(wide, (), ())), np.arange(3))
    parts, found = boxed.draw(np.arange(3), 0.4, (0,))
    assert parts[0, 2] == pytest.approx(0.99)
    assert found[0, GUN]


def test_the_images_show_the_window_alone(bags: Labelled):
    parts = np.tile(np.array([0, 0, 1, 1], np.float32), (3, 1))
    parts[0] = (0.1, 0.4, 0.1, 0.2)  # the gun's box
    settings = ImageSettings(32, (0.0,) * 3, (1 / 255,) * 3, None, seed=0, threads=1)
    _, images = next(iter(training_images(bags.paths, [np.arange(3)], 0, settings, parts)))
    assert images[0].mean((1, 2)).tolist() == pytest.approx([200, 0, 0])
    assert images[1].mean().item() > 220


def test_without_boxes_windows_are_refused(bags: Labelled):
    with pytest.raises(Refused, match="need boxes around the threats"):
        BoxedThreats(replace(bags, boxes=()), np.arange(3))


@pytest.mark.parametrize("text", ["128", "128:2:0", "128:2:1.5", "128:2:0.5:1", "x:1", "16:1"])
def test_stages_that_cannot_be_are_refused(text: str, tmp_path: Path):
    with pytest.raises(Refused, match="--stages"):
        train_settings(tmp_path, **DEFAULTS | {"stages": text})


def test_stages_are_sizes_epochs_and_windows(tmp_path: Path):
    settings = train_settings(tmp_path, **DEFAULTS | {"stages": "96:4:0.5,256:2"})
    assert settings.phase1.stages == (Stage(96, 4, 0.5), Stage(256, 2))


DEFAULTS = {
    "labels": None,
    "out": Path("out"),
    "run": Path("run"),
    "form": "auto",
    "class_map": None,
    "name": None,
    "seed": 0,
    "threads": 1,
    "device": "cpu",
    "phases": (),
    "weights": None,
    "start": None,
    "synthetic": None,
    "project": 0,
    "project_from": None,
    "backbone": "regnetx_004",
    "image_size": 256,
    "stages": "128:1",
    "batch_size": 16,
    "learning_rate": 1e-3,
    "places": 0.0,
    "bigan_steps": 10,
    "phase3": "insample",
}
