"""Every detector on the same features and splits: their scores, stored as they come."""

import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.evaluation.bootstrap import Bootstrap
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.bigan import BiGAN
from gbad_batch.engine.model.gbad import GBAD, round_to_half
from gbad_batch.engine.system.durable import write_whole
from gbad_batch.engine.system.progress import silent
from gbad_batch.engine.training.checkpoint import CONFIG, RunFolder
from gbad_batch.engine.training.data import Labelled, Splits, load_labelled, split
from gbad_batch.engine.training.features import open_features
from gbad_batch.engine.training.phases.phase2 import train_bigan
from gbad_batch.engine.training.phases.phase3 import Losses, fit_decisions, losses_of
from gbad_batch.engine.training.run import TrainingRun
from gbad_batch.engine.training.settings import Phase2Settings, Phase3Settings, Shares, TrainSettings

from . import rivals
from .comparison import Judged, judge

Scores = NDArray[np.float64]  # [n] in the order of `Contest.judged`
Named = Mapping[str, Scores]  # by detector
BIGAN, AUTOENCODER = "bigan", "autoencoder"
SOURCES = (BIGAN, AUTOENCODER, *rivals.RIVALS)
RANDOM = (BIGAN, AUTOENCODER, *rivals.RANDOM)


@dataclass(frozen=True)
class Contest:
    """What every detector is given: features of labelled images, their splits, and settings."""

    labelled: Labelled
    splits: Splits
    x: NDArray[np.float32]  # [n, d]
    logits: NDArray[np.float32]  # [n, 5]
    phase2: Phase2Settings
    phase3: Phase3Settings
    digest: str  # of all that sets the features
    latent: int = Architecture().latent  # length of the BiGAN's z

    @property
    def benign(self) -> NDArray[np.intp]:
        """Positions of the benign training images."""
        return self.splits.train[~self.labelled.positive[self.splits.train]]

    @property
    def judged(self) -> NDArray[np.intp]:
        """Positions of the images that are scored: those of the calibration split, then of the test split."""
        return np.concatenate([self.splits.calibration, self.splits.test])

    def scores(self, folder: Path, seeds: int, sources: Sequence[str] = SOURCES) -> dict[str, list[Scores]]:
        """Give the scores by each detector, an array a seed; what `folder` holds is not computed again.

        A detector that draws nothing at random has one array. The BiGAN is the source of several.
        """
        own = folder / self._name()
        own.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Scores]] = {}
        for source in sources:
            for seed in range(seeds if source in RANDOM else 1):
                print(f"{source}, seed {seed}", file=sys.stderr)
                part = stored(own / f"{source}-{seed}.npz", partial(_scored, self, source, seed))
                for name, values in part.items():
                    found.setdefault(name, []).append(values)
        if "classes" in found:
            found["class_maximum"] = found.pop("classes")[:1]  # it sees no loss
        return found

    def judge(self, scores: Sequence[Scores], chosen: NDArray[np.bool_] | None = None) -> dict[str, Judged]:
        """Judge a detector on the test images, or on those `chosen` [n], by thresholds of the calibration."""
        positions = self.splits.test if chosen is None else self.splits.test[chosen[self.splits.test]]
        among = np.isin(self.judged, positions)
        benign = len(self.splits.calibration)
        test = self.labelled.take(self.judged[among])
        bags = Bootstrap.by_group(test.groups)
        return judge(
            test.positive, [each[among] for each in scores], [each[:benign] for each in scores], bags
        )

    def _name(self) -> str:
        """Name the scores by what they come from: features, settings, and the sources of the detectors."""
        given = json.dumps(
            [self.digest, self.latent, asdict(self.phase2), asdict(self.phase3)], sort_keys=True
        )
        sources = [Path(file).read_bytes() for file in (__file__, rivals.__file__)]
        return hashlib.sha256(b"\n".join([given.encode(), *sources])).hexdigest()[:16]


def open_run(run: Path, labels: Path, images: Path) -> Contest:
    """Open the run folder of a training whose phases I and II are done.

    Raises Refused where they are not, or where the data set is not the one that it was trained on.
    """
    file = run / CONFIG
    if not file.exists():
        raise Refused(f"{run} is no run folder of gbad-batch train: name one with --run")
    config = json.loads(file.read_text())
    listed = load_labelled(labels, images)
    looked_at = RunFolder(run).load("images")
    network = run / "network.pt"
    if listed.digest(images) != config["images"] or looked_at is None:
        raise Refused(f"{run} was trained on other images than {labels}: name its data set as training did")
    whole = np.flatnonzero(looked_at["readable"].numpy())
    labelled = listed.take(whole)
    splits = split(labelled, looked_at["alike"].numpy()[whole], Shares(**config["shares"]), config["seed"])
    features = open_features(run, len(whole), config["architecture"]["features"])
    if not network.exists() or features.done < len(whole):
        raise Refused(f"{run} lacks features: finish phases I and II of its training first")
    return Contest(
        labelled,
        splits,
        np.array(features.x),
        np.array(features.logits),
        Phase2Settings(**config["phase2"]),
        Phase3Settings(**{key: _tuple(value) for key, value in config["phase3"].items()}),
        hashlib.sha256(file.read_bytes() + network.read_bytes()).hexdigest(),
    )


def open_bundle(bundle: Bundle, settings: TrainSettings) -> Contest:
    """Compute the features of a data set by the network of a bundle, as it is, in a run folder."""
    run = TrainingRun(settings, silent)
    run.prepare()
    if run.folder.load("network") is None:
        architecture, form = bundle.manifest.architecture, bundle.manifest.preprocessing
        network = GBAD.from_arrays(architecture, bundle.tensors(), form.mean, form.std).network
        run.folder.save(
            "network",
            {"state": network.state_dict(), "begun": {}, "head": architecture.head, "poolings": {}},
        )
    run.extract_features()
    return open_run(settings.run, settings.labels, settings.image_folder)


def classifier_of(run: Path, architecture: Architecture) -> GBAD:
    """Give a model with the network of a run whose phase I is done."""
    model, finished = GBAD(architecture), RunFolder(run).load("network")
    assert finished is not None
    model.network.load_state_dict(finished["state"])
    return model.eval()


def stored(path: Path, compute: Callable[[], Named]) -> Named:
    """Give the scores in a file, computed and written first where there is none."""
    if not path.exists():
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **compute())
        write_whole(path, buffer.getvalue())
    with np.load(path) as found:
        return dict(found)


def _scored(contest: Contest, source: str, seed: int) -> Named:
    if source == BIGAN:
        return _bigan(contest, seed)
    if source == AUTOENCODER:
        return _autoencoder(contest, seed)
    score = rivals.fit(source, contest.x[contest.benign], seed)
    return {source: score(contest.x[contest.judged])}


def _bigan(contest: Contest, seed: int) -> Named:
    """Run phases II and III: both losses, and the decisions on them."""
    losses, splits = _losses(contest, contest.phase2, seed), contest.splits
    train, validation = losses.take(splits.train), losses.take(splits.validation)
    decisions = fit_decisions(train, validation, contest.phase3, seed, silent)
    judged = losses.take(contest.judged)
    return {name: judged.scores(each) for name, each in decisions.items()} | {
        "reconstruction": judged.reconstruction.astype(np.float64),
        "feature_matching": judged.feature_matching.astype(np.float64),
    }


def _autoencoder(contest: Contest, seed: int) -> Named:
    """Train E and G as the BiGAN's, but without a game: `adversarial` is zero."""
    losses = _losses(contest, replace(contest.phase2, adversarial=0), seed)
    return {AUTOENCODER: losses.reconstruction[contest.judged].astype(np.float64)}


def _losses(contest: Contest, settings: Phase2Settings, seed: int) -> Losses:
    torch.manual_seed(seed)
    bigan = BiGAN(Architecture(features=contest.x.shape[1], latent=contest.latent))
    train_bigan(bigan, contest.x[contest.benign], settings, seed, silent)
    round_to_half(bigan)
    return Losses(*losses_of(bigan, contest.x), contest.logits, contest.labelled.labels)


def _tuple(value: Any) -> Any:
    """Undo what JSON does to a tuple."""
    return tuple(value) if isinstance(value, list) else value
