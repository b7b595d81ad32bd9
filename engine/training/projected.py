"""Training images that projection makes: benign ones of the train split, with threats in them."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..decode import DecodeLimits, Decoder
from ..durable import write_whole
from ..errors import Refused
from ..machine import usable_cores
from ..row import THREATS, Row
from ..synth import air_of
from ..synth.picture import SHARES
from .data import Labelled
from .progress import Progress
from .projection import AREAS, Pixels, bags_of, place, project, varied
from .threats import Threats

FOLDER = "projected"  # in the run folder
HELD = "threats"  # key in the text of a picture: what it holds
MANY = (0.64, 0.28, 0.08)  # share of images with one, two and three threats


def project_threats(
    folder: Path, benign: Labelled, threats: Threats, count: int, seed: int, progress: Progress
) -> Labelled:
    """Write `count` pictures into a folder, each a benign image with threats in it; what is there stays.

    Each depends on the seed and its number alone, is written losslessly, and carries what it holds. A host
    without room for a threat gives no picture. Raises Refused for more pictures than there are benign
    images, and where no threat could be projected.
    """
    if count > len(benign.paths):
        raise Refused(
            f"--project {count}: the train split holds {len(benign.paths)} benign images to project into; "
            "ask for no more, or add benign images"
        )
    folder.mkdir(exist_ok=True)
    hosts = np.random.default_rng((seed, 7)).permutation(len(benign.paths))[:count]
    decoder = Decoder(None, DecodeLimits())

    def make(number: int) -> list[bool] | None:
        return _made(
            folder / f"{number:06d}.png", benign.paths[hosts[number]], decoder, threats, (seed, 8, number)
        )

    held: list[list[bool] | None] = []
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for flags in pool.map(make, range(count)):
            held.append(flags)
            progress("project threats", len(held), count, {})
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for no picture that is not begun
    made = [number for number, flags in enumerate(held) if flags]
    if not made:
        raise Refused(
            f"none of {count} threats could be projected: none stands out from its surroundings, or no "
            "benign image shows a bag with room for it"
        )
    chosen = benign.take(hosts[made])
    paths = tuple(folder / f"{number:06d}.png" for number in made)
    return Labelled(paths, np.array([held[number] for number in made]), chosen.groups, chosen.splits)


def _made(
    path: Path, host: Path, decoder: Decoder, threats: Threats, key: tuple[int, ...]
) -> list[bool] | None:
    """Tell what a picture holds, [5], once it is written; None where its host takes no threat."""
    if not path.exists():
        pixels = decoder(Row(uri=str(host)), host.read_bytes())
        assert pixels is not None  # training looked at every image
        picture, names = projected(pixels, threats, np.random.default_rng(key))
        if not names:
            return None
        write_whole(path, _png(picture, names))
    with Image.open(path) as stored:
        names = str(stored.info[HELD]).split(",")
    return [name in names for name in THREATS]


def _png(picture: Pixels, names: list[str]) -> bytes:
    text, file = PngInfo(), io.BytesIO()
    text.add_text(HELD, ",".join(names))
    Image.fromarray(picture).save(file, "PNG", pnginfo=text, compress_level=3)
    return file.getvalue()


def projected(picture: Pixels, threats: Threats, random: np.random.Generator) -> tuple[Pixels, list[str]]:
    """Project one to three threats into the bags of a picture; returns it with the names of those in it."""
    air, bags = air_of(picture), bags_of(picture)
    names: list[str] = []
    if not bags:
        return picture, names
    for name in _drawn(threats.names, random):
        bag = bags[random.integers(len(bags))]
        threat = threats.draw(name, air, random)
        sized = None if threat is None else varied(threat, bag, AREAS[name], random)
        at = None if sized is None else place(sized, bag, random)
        if sized is not None and at is not None:
            picture = project(picture, sized, at)
            names.append(name)
    return picture, names


def _drawn(names: tuple[str, ...], random: np.random.Generator) -> list[str]:
    """Draw the classes of one picture's threats, as often as they occur in SIXray."""
    shares = np.array([SHARES[THREATS.index(name)] for name in names])
    many = min(1 + int(random.choice(len(MANY), p=MANY)), len(names))
    return [names[k] for k in random.choice(len(names), many, replace=False, p=shares / shares.sum())]
