"""Projected training images: benign ones of the train split, with threats in them."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...datasets import Box
from ...decode import DecodeLimits, Decoder
from ...errors import Refused
from ...row import THREATS, Row
from ...synth import air_of
from ...synth.picture import SHARES
from ...system.durable import write_whole
from ...system.machine import usable_cores
from ...system.progress import ProgressCallback
from ..data import Labelled
from .physics import AREAS, Pixels, bags_of, find_position, project, varied
from .threats import Threats

FOLDER = "projected"  # in the run folder
HELD = "threats"  # key in the text of a picture: what it holds and where, JSON
MANY = (0.64, 0.28, 0.08)  # share of images with one, two and three threats


def project_threats(
    folder: Path, benign: Labelled, threats: Threats, count: int, seed: int, progress: ProgressCallback
) -> Labelled:
    """Write `count` pictures into a folder, each a benign image with threats in it; keeps existing ones.

    A picture depends only on the seed and its number, is written losslessly, and stores its labels. A host
    without room for a threat gives no picture. Raises Refused for more pictures than there are benign
    images, and if no threat could be projected.
    """
    if count > len(benign.paths):
        raise Refused(
            f"--project {count}: the train split holds {len(benign.paths)} benign images to project into; "
            "give a smaller number, or add benign images"
        )
    folder.mkdir(exist_ok=True)
    hosts = np.random.default_rng((seed, 7)).permutation(len(benign.paths))[:count]
    decoder = Decoder(None, DecodeLimits())

    def make(number: int) -> tuple[Box, ...]:
        return _made(
            folder / f"{number:06d}.png", benign.paths[hosts[number]], decoder, threats, (seed, 8, number)
        )

    held: list[tuple[Box, ...]] = []
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for boxes in pool.map(make, range(count)):
            held.append(boxes)
            progress("project threats", len(held), count, {})
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for no picture that is not begun
    made = [number for number, boxes in enumerate(held) if boxes]
    if not made:
        raise Refused(
            f"none of {count} threats could be projected: none stands out from its surroundings, or no "
            "benign image shows a bag with room for it"
        )
    chosen = benign.take(hosts[made])
    paths = tuple(folder / f"{number:06d}.png" for number in made)
    boxes = tuple(held[number] for number in made)
    labels = np.array([[name in {box.threat for box in each} for name in THREATS] for each in boxes])
    return Labelled(paths, labels, chosen.groups, chosen.splits, boxes, chosen.known | labels)


def _made(
    path: Path, host: Path, decoder: Decoder, threats: Threats, key: tuple[int, ...]
) -> tuple[Box, ...]:
    """Write a picture and return its labels, or None if its host has no room for a threat."""
    if not path.exists():
        pixels = decoder(Row(uri=str(host)), host.read_bytes())
        assert pixels is not None  # training looked at every image
        picture, boxes = projected(pixels, threats, np.random.default_rng(key))
        if not boxes:
            return ()
        write_whole(path, _png(picture, boxes))
    with Image.open(path) as stored:
        return tuple(Box(*each) for each in json.loads(stored.info[HELD]))


def _png(picture: Pixels, boxes: list[Box]) -> bytes:
    text, file = PngInfo(), io.BytesIO()
    text.add_text(HELD, json.dumps([astuple(box) for box in boxes]))
    Image.fromarray(picture).save(file, "PNG", pnginfo=text, compress_level=3)
    return file.getvalue()


def projected(picture: Pixels, threats: Threats, random: np.random.Generator) -> tuple[Pixels, list[Box]]:
    """Project one to three threats into the bags of a picture; returns it with its threats."""
    air, bags = air_of(picture), bags_of(picture)
    boxes: list[Box] = []
    if not bags:
        return picture, boxes
    for name in _drawn(threats.names, random):
        bag = bags[random.integers(len(bags))]
        threat = threats.draw(name, air, random)
        sized = None if threat is None else varied(threat, bag, AREAS[name], random)
        at = None if sized is None else find_position(sized, bag, random)
        if sized is not None and at is not None:
            picture = project(picture, sized, at)
            boxes.append(sized.box(at))
    return picture, boxes


def _drawn(names: tuple[str, ...], random: np.random.Generator) -> list[str]:
    """Draw the classes of one picture's threats, as often as they occur in SIXray."""
    shares = np.array([SHARES[THREATS.index(name)] for name in names])
    many = min(1 + int(random.choice(len(MANY), p=MANY)), len(names))
    return [names[k] for k in random.choice(len(names), many, replace=False, p=shares / shares.sum())]
