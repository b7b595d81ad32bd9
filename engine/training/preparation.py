"""Preparation of phase I: read labels, decode every image, divide images into splits, project threats."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle import Bundle
from ..datasets.duplicates import fingerprints, groups_of
from ..errors import Refused
from ..synth import generator_hash
from ..system.durable import remove
from ..system.progress import ProgressCallback
from ..text import counted
from .checkpoint import RunFolder
from .data import Index, Labelled, Splits, load_labelled, split
from .features import FEATURES, LEAST_READABLE
from .mixing import believed, synthetic_images, unknown_classes
from .phases import phase1, phase2
from .phases.windows import NO_BOXES
from .projection.projecting import FOLDER, project_threats
from .projection.threats import open_threats
from .settings import PHASES, TrainSettings

# parts of the configuration that the network of phase I rests on
NETWORK_RESTS_ON = {"phase1", "boxes", "projected", "mixed"}


@dataclass(frozen=True)
class Prepared:
    """The images of a training."""

    labelled: Labelled  # readable images, and behind them those that projection made
    splits: Splits
    projected: Index  # positions of the images that projection made
    warnings: tuple[str, ...]
    mixed: Labelled | None = None  # synthetic images for phase I, in no split

    @property
    def benign(self) -> Index:
        """Return the positions of the benign training images."""
        return self.splits.train[~self.labelled.positive[self.splits.train]]


def prepare(settings: TrainSettings, threads: int, folder: RunFolder, progress: ProgressCallback) -> Prepared:
    """Prepare everything that phase I needs, which takes long, since every image is decoded once.

    The run folder remembers which images were decoded and projected, so a killed preparation resumes. Raises
    Refused for a data set that training cannot use, and for the run folder of another training.
    """
    listed = load_labelled(settings.labels, settings.image_folder, settings.form, settings.class_map)
    _check_boxes(settings, listed)
    changed = folder.open(configuration(settings, listed, threads), may_change=_may_change(settings))
    _drop_stale(folder, changed)
    labelled, splits, warnings = _split_readable(settings, listed, folder, progress)
    mixed = None
    if settings.mixed:
        size = settings.architecture.input_size
        mixed = synthetic_images(folder.path, settings.mixed, settings.seed, size, progress)
        labelled = replace(labelled, known=believed(labelled, splits.train))
    for threat, count in unknown_classes(labelled.known).items():
        warnings.append(
            f"Of {count} images it is unknown whether they hold {threat}: phase I learned nothing of it "
            "from them, and figures count them as without."
        )
    prepared = Prepared(labelled, splits, np.empty(0, np.intp), tuple(warnings), mixed)
    return _project(settings, prepared, folder, progress) if settings.projected else prepared


def configuration(settings: TrainSettings, listed: Labelled, threads: int) -> dict[str, Any]:
    """Return what must be the same for a training to be resumed in a run folder."""
    own = plain(asdict(settings))
    boxes = listed.boxes_digest()
    source = boxes if settings.projected_from is None else str(settings.projected_from)
    keys: Sequence[str] = ("seed", "device", "architecture", "shares", "phase1", "phase2", "phase3")
    return {
        "images": listed.digest(settings.image_folder),
        "boxes": boxes if settings.phase1.needs_boxes else None,
        "threads": threads,
        "start": Bundle.read(settings.start).hash if settings.start else None,
        "weights": str(settings.backbone_weights) if settings.backbone_weights else None,
        "projected": [settings.projected, source] if settings.projected else None,
        "mixed": [settings.mixed, *settings.epoch_images, generator_hash()] if settings.mixed else None,
        **{key: own[key] for key in keys},
    }


def plain(value: Any) -> Any:
    """Return settings as JSON values, without paths, which mean nothing on another machine."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not isinstance(item, Path)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def _check_boxes(settings: TrainSettings, listed: Labelled) -> None:
    """Refuse a lack of boxes, or of threats to project, before decoding all images."""
    if settings.projected:
        open_threats(settings.projected_from, listed, settings.class_map)
    elif 1 in settings.phases and settings.phase1.needs_boxes and not (listed.boxes or settings.mixed):
        raise Refused(NO_BOXES)


def _may_change(settings: TrainSettings) -> set[str]:
    """Return the keys of the configuration whose phases were requested by number, so may be repeated."""
    if settings.phases == PHASES:
        return set()
    phases = {f"phase{number}" for number in settings.phases}
    return phases | NETWORK_RESTS_ON if "phase1" in phases else phases


def _drop_stale(folder: RunFolder, changed: Collection[str]) -> None:
    """Drop what a change of the configuration makes stale, and what depends on it."""
    if "projected" in changed:
        remove(folder.path / FOLDER)
    if NETWORK_RESTS_ON.intersection(changed):
        folder.drop("network", phase1.NAME)
        remove(folder.path / FEATURES)
    if (NETWORK_RESTS_ON | {"phase2"}).intersection(changed):
        folder.drop("bigan", phase2.NAME)
    folder.accept_configuration()


def _split_readable(
    settings: TrainSettings, listed: Labelled, folder: RunFolder, progress: ProgressCallback
) -> tuple[Labelled, Splits, list[str]]:
    """Leave out unreadable images and divide the rest into splits, with look-alikes in the same one."""
    stored = folder.load("images")
    if stored is None:
        prints = fingerprints(listed.paths, progress)
        readable = np.ones(len(listed.paths), np.bool_)
        readable[list(prints.faults)] = False
        stored = {"readable": torch.from_numpy(readable), "alike": torch.from_numpy(groups_of(prints))}
        folder.save("images", stored)
    readable, alike = stored["readable"].numpy(), stored["alike"].numpy()
    whole = np.flatnonzero(readable)
    if len(whole) < LEAST_READABLE * len(readable):
        raise Refused(
            f"{len(readable) - len(whole)} of {len(readable)} images cannot be decoded, and training "
            "needs 99 in a hundred: `gbad-batch data check` names them"
        )
    labelled = listed.take(whole)
    splits = split(labelled, alike[whole], settings.shares, settings.seed)
    return labelled, splits, _shared_bags(alike[whole], splits)


def _shared_bags(alike: NDArray[np.intp], splits: Splits) -> list[str]:
    """Warn of images in other splits that look like training images, which splits in labels may have."""
    warnings = []
    training = np.unique(alike[splits.train])
    for name in ("validation", "calibration", "test"):
        number = int(np.isin(alike[getattr(splits, name)], training).sum())
        if number:
            look = "looks" if number == 1 else "look"
            warnings.append(
                f"{counted(number, 'image')} of the {name} split {look} like images of the train split."
            )
    return warnings


def _project(
    settings: TrainSettings, prepared: Prepared, folder: RunFolder, progress: ProgressCallback
) -> Prepared:
    """Add projected images to the train split.

    Threats come from training images too; the benign images that they are projected into stay as well.
    """
    labelled, train = prepared.labelled, prepared.splits.train
    threats = open_threats(settings.projected_from, labelled.take(train), settings.class_map)
    hosts = labelled.take(prepared.benign)
    made = project_threats(folder.path / FOLDER, hosts, threats, settings.projected, settings.seed, progress)
    added = np.arange(len(labelled.paths), len(labelled.paths) + len(made.paths))
    return replace(
        prepared,
        labelled=labelled.concatenated(made),
        splits=replace(prepared.splits, train=np.concatenate([train, added])),
        projected=added,
    )
