"""From pixels to decisions, with a model, its engine and an operating point."""

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export import engine_for
from ...export.choice import listed_gpus
from ...export.gate import verdict
from ..bundle import DEMO_SENTENCE, Bundle, OperatingPoint, default_bundle_path, operating_point
from ..errors import Refused, Stopped
from ..model.decision import Decision, on_device, sigmoid
from ..results.schema import SCHEMA_VERSION
from ..results.site_point import digest_of, read_point
from ..row import ImageFault, Row, threat_names
from ..runtime import EngineFailed, Outputs, Runner, concatenate, open_engine
from ..settings import ScanSettings
from .plan import WorkPlan, plan_for

Pixels = Any  # uint8 [n, S, S, 3] RGB: a numpy array, or a torch tensor on a GPU

MID_GRAY = 128  # an image that every engine can score


@dataclass(frozen=True)
class Setup:
    """What a scan runs with, once everything is open, as footer and summary report it."""

    model: str  # name and short hash
    bundle: str
    bundle_hash: str
    trunk: str  # hash of what gives x and logits
    demo: bool
    backend: str
    backend_version: str
    device: str  # of the first worker
    devices: tuple[str, ...]  # one for each worker on a GPU; empty on a CPU
    precision: str
    engine_key: str  # engines with the same key give the same scores
    parity: str  # how near the engine came to its limit in the parity gate
    reason: str  # why `auto` chose this precision, if it had a choice
    point: OperatingPoint
    features: int  # length of x
    input_size: int  # pixels a side
    plan: WorkPlan

    def introduction(self) -> list[str]:
        """Describe model, engine, parity and plan in the lines that a scan prints at its start."""
        engine = f"{self.backend} {self.precision} on {self.device}"
        words = [f"model {self.model}, {engine}", self.parity, str(self.plan)]
        line = "; ".join(word for word in words if word)
        return [line, f"this model was {DEMO_SENTENCE}"] if self.demo else [line]

    def description(self) -> dict[str, Any]:
        """Describe model, backend and decision for the footer."""
        return {
            "bundle": self.bundle,
            "bundle_hash": self.bundle_hash,
            "trunk": self.trunk,
            "demo": self.demo,
            "use": DEMO_SENTENCE if self.demo else None,
            "backend": self.backend,
            "backend_version": self.backend_version,
            "device": self.device,
            "precision": self.precision,
            "operating_point": asdict(self.point),
        }

    def resolved(self, settings: ScanSettings) -> dict[str, Any]:
        """Return what the settings were resolved to, as far as resuming depends on it."""
        return {
            "model": self.bundle_hash,
            "engine": self.backend,
            "precision": self.precision,
            "decision": self.point.decision,
            "pfa": self.point.pfa if settings.threshold is None and settings.point is None else None,
            "threshold": self.point.threshold,
            "point": None if settings.point is None else digest_of(self.point),
            "schema": SCHEMA_VERSION,
        }

    def notes(self) -> list[str]:
        """Return remarks for the summary."""
        return ([self.reason] if self.reason else []) + self.point.notes(self.precision)


class Scorer:
    """Scores images with one model on one device; a context manager.

    Several threads may score at once; if the backend has streams, each batch takes one of its own. Without a
    plan the tuned one is used, else the default. Raises Refused if the bundle, the engine or the operating
    point is unavailable.
    """

    def __init__(self, settings: ScanSettings, plan: WorkPlan | None = None):
        self.bundle = Bundle.read(Path(settings.model or default_bundle_path()))
        self.engine = engine_for(
            self.bundle,
            device=settings.device,
            engine=settings.engine,
            precision=settings.precision,
            cache_dir=Path(settings.cache_dir) if settings.cache_dir else None,
            threads=settings.threads,
        )
        self.devices = devices_of(settings.device, self.engine.device)
        self.plan = plan or plan_for(settings, self.engine, len(self.devices))
        self.point = self._point(settings)
        self.input_size = self.bundle.manifest.architecture.input_size
        decision = Decision.from_tensors(self.point.decision, self.bundle.tensors())
        self._decision = on_device(decision, self.engine.device)
        self._typicality = self.bundle.typicality()
        self._class_thresholds = np.asarray(self.point.class_thresholds, np.float32)
        # Held while a second engine is opened and used. Decoding on the same GPU takes it, too, and so waits:
        # DALI may synchronize the whole device, which breaks the capture of the engine's CUDA graphs.
        self.recovering = Lock()
        self.runner: Runner = open_engine(self.engine, self.plan.cores, self.plan.threads)
        self._turns = BoundedSemaphore(self.runner.streams)

    def _point(self, settings: ScanSettings) -> OperatingPoint:
        if settings.point is not None:
            return read_point(settings.point, self.bundle)
        return operating_point(
            self.bundle, self.engine.precision, settings.decision, settings.pfa, settings.threshold
        )

    def setup(self) -> Setup:
        """Describe what is open."""
        manifest, engine = self.bundle.manifest, self.engine
        return Setup(
            model=f"{manifest.name} ({self.bundle.hash[:12]})",
            bundle=manifest.name,
            bundle_hash=self.bundle.hash,
            trunk=self.bundle.trunk(engine.precision),
            demo=manifest.demo,
            backend=engine.backend,
            backend_version=engine.version,
            device=engine.device,
            devices=self.devices,
            precision=engine.precision,
            engine_key=engine.key,
            parity=verdict(self.bundle, engine),
            reason=engine.reason,
            point=self.point,
            features=engine.features,
            input_size=self.input_size,
            plan=self.plan,
        )

    def __call__(self, rows: list[Row], pixels: Pixels) -> Outputs | None:
        """Fill losses, class scores and decisions into the rows of images.

        `pixels` [n, S, S, 3] belong to the n `rows`. Returns the networks' outputs for the rows that are ok
        afterwards, or None if there are none.
        """
        size, parts = self.plan.batch_size, list[Outputs]()
        scored = list[Row]()
        for start in range(0, len(rows), size):
            batch, outputs = self._infer(rows[start : start + size], pixels[start : start + size])
            scored += batch
            parts += [outputs] if outputs else []
        if not parts:
            return None
        outputs = parts[0] if len(parts) == 1 else concatenate(parts)
        self._decide(scored, outputs)
        return outputs

    def close(self) -> None:
        """Close the engine."""
        self.runner.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _infer(self, rows: list[Row], pixels: Pixels) -> tuple[list[Row], Outputs | None]:
        """Run the networks; an image that fails again by itself, on a fresh runner, gets a status."""
        try:
            return rows, self._run(pixels)
        except EngineFailed as error:
            with self.recovering:
                good = self._without_failing(rows, pixels, error)
        return [rows[k] for k in good], self._run(pixels[good]) if good else None

    def _run(self, pixels: Pixels) -> Outputs:
        with self._turns:
            return self.runner(pixels)

    def _without_failing(self, rows: list[Row], pixels: Pixels, error: EngineFailed) -> list[int]:
        """Return the positions of images that do not fail singly; raises the error if any image fails."""
        on_host = pixels.cpu().numpy() if hasattr(pixels, "cpu") else pixels
        if self._fails_singly(np.full_like(on_host[0], MID_GRAY)):
            raise error
        good = list(range(len(rows)))
        for k in error.positions:
            if self._fails_singly(on_host[k]):
                rows[k].fail(
                    ImageFault("decoder_crash", "the networks fail on it repeatedly, also in a batch of one")
                )
                good.remove(k)
        return good

    def _fails_singly(self, pixels: NDArray[np.uint8]) -> bool:
        try:
            fresh = open_engine(self.engine, self.plan.cores)
        except Refused as error:  # it was open before: the machine has changed, no setting is wrong
            raise Stopped(
                f"a second engine cannot be opened ({error}); finished rows are kept: run the same command "
                "again"
            ) from error
        with closing(fresh):
            try:
                fresh(pixels[None])
            except EngineFailed:
                return True
        return False

    def _decide(self, rows: list[Row], outputs: Outputs) -> None:
        """Fill scores and decisions from the outputs into the rows."""
        losses = outputs.reconstruction_loss, outputs.feature_matching_loss
        scores = self._decision.score(*losses, outputs.logits)
        probabilities = sigmoid(outputs.logits)
        over = (probabilities >= self._class_thresholds).tolist()
        alarms = (scores >= self.point.threshold).tolist()
        largest = outputs.logits.max(axis=1)
        columns = probabilities, largest, *losses, scores
        if self._typicality is not None:
            for row, typicality in zip(rows, self._typicality.of(outputs.x).tolist(), strict=True):
                row.typicality = typicality
        for row, alarm, flags, p, logit, reconstruction, matching, score in zip(
            rows, alarms, over, *(column.tolist() for column in columns), strict=True
        ):
            row.p_gun, row.p_knife, row.p_wrench, row.p_pliers, row.p_scissors = p
            row.largest_logit = logit
            row.reconstruction_loss, row.feature_matching_loss = reconstruction, matching
            row.anomaly_score, row.anomalous = score, alarm
            if alarm:
                row.threats = threat_names(flags)


def devices_of(asked: str, device: str) -> tuple[str, ...]:
    """Name the GPUs that a scan uses: `cuda:0,2` those, else every one that torch sees; none on a CPU."""
    if device == "cpu":
        return ()
    from ..runtime.cuda import visible_gpus

    return listed_gpus(asked) or visible_gpus()


def resolved_settings(settings: ScanSettings, setup: Setup, device: str) -> ScanSettings:
    """Return the settings for another worker: as the first one resolved them, on its own device."""
    return replace(settings, device=device, engine=setup.backend, precision=setup.precision)
