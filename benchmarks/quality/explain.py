"""Where the model looks: pointing game and deletion test of class maps, beside Grad-CAM and chance.

In the pointing game (Zhang et al., Top-down neural attention by excitation backprop, 2018) the hottest point
lies in a box of the class or not. The deletion test (Petsiuk et al., RISE, 2018) empties the picture where it
is hottest and looks how fast the class goes: what is left of its probability, so less is better.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.explain import Explainer, hottest
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.row import THREATS, Row
from gbad_batch.engine.synth import SynthSettings, write_archive
from gbad_batch.engine.system.machine import usable_cores

from ..report import Report

Box = tuple[float, float, float, float]  # x, y, width, height, pixels
Point = tuple[float, float]  # x, y
Heat = NDArray[np.float32]  # [h, w], of one class

WAYS = ("map", "grad_cam", "chance")
DELETED = (0.01, 0.02, 0.04, 0.08, 0.16)  # shares of the picture, hottest first
AIR = 255  # what an X-ray image shows where nothing is
SEED = 19


class Game(NamedTuple):
    """One class that an image holds, and what points at it in each of WAYS."""

    detected: bool  # the class reaches its threshold
    hit: dict[str, float]  # 1 or 0; of chance the share of the picture that boxes cover
    left: dict[str, float] | None  # mean share of the probability that deletion leaves, of detected classes


def options(parser: argparse.ArgumentParser) -> None:
    """Name the bundle and the number of images."""
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    parser.add_argument("--images", type=int, default=200, help="with threats of unseen shapes")


def run(arguments: argparse.Namespace) -> Report:
    """Play both games on each class of each image that holds it."""
    bundle = Bundle.read(arguments.model or default_bundle_path())
    players = Players(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "archive")
        settings = SynthSettings(
            count=arguments.images, positive=1.0, objects="test", seed=SEED, workers=usable_cores()
        )
        write_archive(archive, settings)
        games = [game for path, boxes in boxed(archive) for game in players(path, boxes)]
    report = Report(f"Where {bundle.manifest.name} {bundle.hash[:12]} looks")
    found = [game for game in games if game.detected]
    report.add("threats", len(games))
    report.add("detected", len(found))
    for way in WAYS:
        report.add(f"{way}_all", _mean([game.hit[way] for game in games]))
    for way in WAYS:
        least = 0.75 if way == "map" else None
        report.add(f"{way}_detected", _mean([game.hit[way] for game in found]), at_least=least)
    for way in WAYS:
        report.add(f"deletion_{way}", _mean([game.left[way] for game in found if game.left]))
    report.notes.append("a threat is a class in an image that holds it; deletion: less is better")
    return report


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def boxed(archive: Path) -> Iterator[tuple[Path, dict[str, list[Box]]]]:
    """Yield the images of a synthetic archive with the boxes of each class in them."""
    read = json.loads((archive / "boxes.json").read_text())
    for image in read["images"]:
        boxes: dict[str, list[Box]] = {}
        for threat in read["annotations"]:
            if threat["image_id"] == image["id"]:
                boxes.setdefault(THREATS[threat["category_id"] - 1], []).append(tuple(threat["bbox"]))
        yield archive / "images" / image["file_name"], boxes


class Players:
    """Points at classes by the class map, by Grad-CAM, and by chance."""

    def __init__(self, bundle: Bundle, threads: int | None = None):
        architecture, form = bundle.manifest.architecture, bundle.manifest.preprocessing
        self._explainer = Explainer(bundle, DecodeLimits(), threads)
        self._decode = Decoder(architecture.input_size, DecodeLimits())
        self._model = GBAD.from_arrays(architecture, bundle.tensors(), form.mean, form.std)
        self._luck = np.random.default_rng(SEED)

    def __call__(self, path: Path, boxes: dict[str, list[Box]]) -> Iterator[Game]:
        """Play for each class of an image."""
        row, blob = Row(str(path)), path.read_bytes()
        pixels, found = self._decode(Row(str(path)), blob), self._explainer(row, blob)
        if pixels is None or found is None:
            raise RuntimeError(f"a good picture was not decoded: {row.error}")
        for name, some in boxes.items():
            threat = THREATS.index(name)
            heat = {
                "map": found.places[threat],
                "grad_cam": self.grad_cam(pixels, threat),
                "chance": self._luck.random(found.places[threat].shape, np.float32),
            }
            hit = {way: float(inside(hottest(heat[way], found.size), some)) for way in WAYS}
            probability = float(found.probabilities[threat])
            detected = probability >= self._explainer.thresholds[threat]
            left = {way: self._left(pixels, heat[way], threat) / probability for way in WAYS}
            yield Game(detected, hit | {"chance": covered(some, found.size)}, left if detected else None)

    def grad_cam(self, pixels: NDArray[np.uint8], threat: int) -> Heat:
        """Return Grad-CAM of C5 for the logit of a class (Selvaraju et al., 2017), of pixels [S, S, 3]."""
        with torch.no_grad():
            maps = self._model.maps(torch.from_numpy(pixels)[None])
        last = maps[-1].requires_grad_()
        with torch.enable_grad():
            _, logits = self._model.network.heads([*maps[:-1], last])
            (slope,) = torch.autograd.grad(logits[0, threat], last)
        return F.relu((slope.mean((2, 3), keepdim=True) * last).sum(1))[0].detach().numpy()

    def _left(self, pixels: NDArray[np.uint8], heat: Heat, threat: int) -> float:
        """Return the mean probability of a class once the hottest shares of the picture are emptied."""
        side = pixels.shape[:2]
        smooth = F.interpolate(torch.from_numpy(heat)[None, None], side, mode="bilinear")
        order = smooth.flatten().argsort(descending=True, stable=True).numpy()
        emptied = np.stack([pixels] * len(DELETED))
        for picture, share in zip(emptied, DELETED, strict=True):
            picture.reshape(-1, 3)[order[: round(share * len(order))]] = AIR
        logits = self._explainer.maps(emptied).logits[:, threat]
        return float((1 / (1 + np.exp(-logits.astype(np.float64)))).mean())


def inside(point: Point, boxes: list[Box]) -> bool:
    """Tell whether a point lies in one of these boxes."""
    return any(x <= point[0] <= x + wide and y <= point[1] <= y + high for x, y, wide, high in boxes)


def covered(boxes: list[Box], size: tuple[int, int]) -> float:
    """Return the share of a picture of `size` (width, height) that boxes cover, which may overlap."""
    mask = np.zeros((size[1], size[0]), bool)
    for x, y, wide, high in boxes:
        mask[round(y) : round(y + high), round(x) : round(x + wide)] = True
    return float(mask.mean())
