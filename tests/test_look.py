"""Looks of other scanners in training: what they change, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest

from gbad_batch.engine.training.look import Look, air_of, draw_look
from gbad_batch.engine.training.look import repaint as repainted

PLAIN = Look(1.0, None, 0.0, 1.0, 1.0, 1.0, 0.0, 0, 0)


def repaint(pixels: np.ndarray, look: Look) -> np.ndarray:
    return repainted(pixels, look, air_of(pixels))


@pytest.fixture
def bag() -> np.ndarray:
    """Draw a grey belt with an orange bag and a blue thing in it."""
    pixels = np.full((64, 64, 3), 226, np.uint8)
    pixels[8:56, 8:56] = (222, 170, 90)
    pixels[24:40, 24:40] = (40, 90, 160)
    return pixels


def test_the_plain_look_changes_nothing(bag: np.ndarray):
    assert np.abs(repaint(bag, PLAIN).astype(int) - bag).max() <= 1


@pytest.mark.parametrize("background", [(255.0, 255, 255), (226.0, 208, 224)])
def test_the_background_becomes_the_one_drawn_and_what_is_dark_stays_dark(
    bag: np.ndarray, background: tuple[float, float, float]
):
    painted = repaint(bag, replace(PLAIN, background=background))
    assert painted[2, 2].tolist() == list(background)
    assert painted[32, 32].mean() < painted[12, 12].mean() < painted[2, 2].mean()


@pytest.mark.parametrize("change", [{"hue": 0.5}, {"saturation": 0.5}, {"gamma": 1.5}])
def test_colours_and_curves_leave_the_background(bag: np.ndarray, change: dict[str, float]):
    painted = repaint(bag, replace(PLAIN, **change))
    assert np.abs(painted[2, 2].astype(int) - 226).max() <= 1
    assert np.abs(painted[12, 12].astype(int) - bag[12, 12]).max() > 5


def test_blur_softens_an_edge_and_sharpness_raises_it(bag: np.ndarray):
    def step(sharpness: float) -> int:
        painted = repaint(bag, replace(PLAIN, sharpness=sharpness)).astype(int)
        return int(painted[32, 23, 0] - painted[32, 24, 0])

    assert step(0.0) < step(1.0) < step(2.5)


def test_looks_are_drawn_from_the_generator_alone(bag: np.ndarray):
    first, again = (draw_look(np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert np.array_equal(repaint(bag, first), repaint(bag, again))
    drawn = [draw_look(np.random.default_rng(k)) for k in range(50)]
    assert len({look.gamma for look in drawn}) == 50
    assert any(look.quality for look in drawn)
    assert all(repaint(bag, look).shape == bag.shape for look in drawn)


def test_a_bag_that_fills_the_rim_is_taken_for_one_on_white():
    dark = np.full((32, 32, 3), 60, np.uint8)
    assert (repaint(dark, replace(PLAIN, background=(226.0, 226, 226)))[16, 16] < 60).all()
