"""From pixels to decisions: the model, its engine and its operating point, opened together."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export import engine_for
from .bundle import DEMO_SENTENCE, Bundle, default_bundle_path, operating_point
from .decode.batch import Encoded
from .errors import Refused, Stopped
from .model.decision import Decision, on_device, sigmoid
from .plan import Plan, plan_for
from .progress import Progress
from .row import ImageFault, Row, threat_names
from .runtime import EngineFailed, Outputs, Runner, open_engine
from .settings import ScanSettings

Pixels = NDArray[np.uint8]  # [S, S, 3] RGB

MID_GRAY = 128  # an image that every engine can score
IDLE_ROWS = 1024  # rows without pixels that wait for a batch at most


@dataclass
class Batch:
    """Rows that travel together; `images` are those of them that have pixels."""

    rows: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)
    pixels: Any = field(default_factory=list)  # one an image, or of all, as a GPU decodes them
    outputs: Outputs | None = None  # None until scored, and where no row has pixels


def batches(decoded: Iterable[tuple[Row, Pixels | Encoded | None]], size: int) -> Iterator[Batch]:
    """Gather images into batches of `size`; rows without pixels travel along."""
    batch = Batch()
    for row, pixels in decoded:
        batch.rows.append(row)
        if pixels is not None:
            batch.images.append(row)
            batch.pixels.append(pixels)
        if len(batch.images) == size or len(batch.rows) == size + IDLE_ROWS:
            yield batch
            batch = Batch()
    if batch.rows:
        yield batch


class Scorer:
    """Scores batches with one model on one device; a context manager.

    As many batches may be scored at once as the plan has streams; None is as tuned here, or by rule. Raises
    Refused where the bundle, the engine or the operating point is not to be had as asked.
    """

    def __init__(self, settings: ScanSettings, progress: Progress, plan: Plan | None = None):
        self.bundle = Bundle.read(settings.model or default_bundle_path())
        self.engine = engine_for(
            self.bundle,
            device=settings.device,
            engine=settings.engine,
            precision=settings.precision,
            cache_dir=settings.cache_dir,
            threads=settings.threads,
        )
        self.plan = plan or plan_for(settings, self.engine)
        self.point = operating_point(
            self.bundle, self.engine.precision, settings.decision, settings.pfa, settings.threshold
        )
        self.input_size = self.bundle.manifest.architecture.input_size
        decision = Decision.from_tensors(self.point.decision, self.bundle.tensors())
        self._decision = on_device(decision, self.engine.device)
        self._class_thresholds = np.asarray(self.point.class_thresholds, np.float32)
        self._progress = progress
        self._suspecting = Lock()
        self.runner: Runner = open_engine(self.engine, self.plan.cores, self.plan.streams)

    def __call__(self, batch: Batch) -> Batch:
        """Compute losses, class scores and decisions of the images of a batch, into their rows."""
        if batch.images:
            with self._progress.timed("infer"):
                batch.outputs = self._infer(batch)
        if batch.outputs:
            with self._progress.timed("decide"):
                self._decide(batch.images, batch.outputs)
        batch.pixels = []
        return batch

    def close(self) -> None:
        """Free what the engine holds."""
        self.runner.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def introduction(self) -> str:
        """Say at the start which model runs on what, how far from FP32, and what it is not for."""
        manifest, engine = self.bundle.manifest, self.engine
        words = [f"model {manifest.name} ({self.bundle.hash[:12]}), {engine.description}"]
        words += [engine.reason] if engine.reason else []
        words += [str(engine.parity)] if engine.parity else []
        words += [str(self.plan)]
        words += [DEMO_SENTENCE] if manifest.demo else []
        return "; ".join(words)

    def description(self) -> dict[str, Any]:
        """Say for the footer which model, backend and decision the rows come from."""
        manifest = self.bundle.manifest
        return {
            "bundle": manifest.name,
            "bundle_hash": self.bundle.hash,
            "demo": manifest.demo,
            "use": DEMO_SENTENCE if manifest.demo else None,
            "backend": self.engine.backend,
            "backend_version": self.engine.version,
            "device": self.engine.device,
            "precision": self.engine.precision,
            "operating_point": asdict(self.point),
        }

    def _infer(self, batch: Batch) -> Outputs | None:
        """Run the networks; an image that alone, on a fresh runner, fails again gets a row of its own."""
        try:
            return self.runner(np.stack(batch.pixels) if isinstance(batch.pixels, list) else batch.pixels)
        except EngineFailed as error:
            with self._suspecting:  # one fresh runner at a time
                self._set_apart(batch, error)
        return self.runner(np.stack(batch.pixels)) if batch.pixels else None

    def _set_apart(self, batch: Batch, error: EngineFailed) -> None:
        """Take the images that fail alone out of a batch; raises the error where any image would fail."""
        batch.pixels = _on_host(batch.pixels)
        if self._fails_alone(np.full_like(batch.pixels[0], MID_GRAY)):
            raise error
        for position in reversed(error.positions):
            if self._fails_alone(batch.pixels[position]):
                fault = ImageFault("decoder_crash", "the networks fail on it, alone and again")
                batch.images.pop(position).fail(fault)
                del batch.pixels[position]

    def _fails_alone(self, pixels: Pixels) -> bool:
        try:
            fresh = open_engine(self.engine, self.plan.cores)
        except Refused as error:  # it was open before: the machine has changed, no setting is wrong
            raise Stopped(f"no second engine opens ({error}); run the same command again") from error
        with closing(fresh):
            try:
                fresh(pixels[None])
            except EngineFailed:
                return True
        return False

    def _decide(self, images: list[Row], outputs: Outputs) -> None:
        losses = outputs.reconstruction_loss, outputs.feature_matching_loss
        scores = self._decision.score(*losses, outputs.logits).tolist()
        probabilities = sigmoid(outputs.logits)
        over = probabilities >= self._class_thresholds
        for i, row in enumerate(images):
            row.p_gun, row.p_knife, row.p_wrench, row.p_pliers, row.p_scissors = probabilities[i].tolist()
            row.reconstruction_loss = float(losses[0][i])
            row.feature_matching_loss = float(losses[1][i])
            row.anomaly_score = scores[i]
            row.anomalous = scores[i] >= self.point.threshold
            if row.anomalous:
                row.threats = threat_names(over[i])


def _on_host(pixels: Any) -> list[Pixels]:
    """Give the pixels of a batch one by one, wherever they are."""
    return list(pixels.cpu().numpy() if hasattr(pixels, "cpu") else pixels)
