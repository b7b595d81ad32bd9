"""The parts of `python -m benchmarks gpu`, each in a process of its own: a GPU's error ends one of them."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.commands.gpu_chain import FAILS, run_chain
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import Engine, open_engine
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.export import engine_for

from ..report import ROOT, Report
from ..stand_ins import open_unscored_stages

BATCH = 256  # images
WARM_UPS = 3  # batches
SUPPORT = 2000  # vectors of the machine that decisions are timed with


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what."""

    bundle: Bundle
    pictures: list[Path]  # images that differ
    archive: Path  # a folder of many links to them
    device: str = "cuda:0"
    seconds: float = 5.0  # that a speed is measured for

    def scan(self, source: Path, **given: Any) -> ScanSettings:
        """Give settings of a scan on the device."""
        own = {"sources": (str(source),), "model": self.bundle.path, "device": self.device}
        return ScanSettings(**own | given)

    @property
    def size(self) -> int:
        """Pixels a side of the networks' input."""
        return self.bundle.manifest.architecture.input_size


def chain(subject: Subject, report: Report) -> None:
    """Run the steps of `gbad-batch doctor --gpu`; the last words of what does not work stand in the notes."""
    failed = 0
    for step in run_chain(subject.device, subject.bundle.path, "auto", "auto", None):
        failed += step.outcome == FAILS
        report.notes.append(f"{step.name} {step.outcome}: {step.found}")
        report.notes += step.said[-20:] if step.outcome == FAILS else []
    report.add("chain_steps_failed", failed, at_most=0)


def parity(subject: Subject, report: Report) -> None:
    """Compare the engine of this device with FP32 on gate images, and its decisions with those of the CPU."""
    began = time.perf_counter()
    engine = engine_for(subject.bundle, device=subject.device)
    report.add("parity_ready_s", time.perf_counter() - began, "s")
    report.notes.append(engine.description)
    if engine.parity:
        report.add("parity_loss_rel_max", engine.parity.loss_rel_max)
        report.add("parity_flips_max", max(engine.parity.flips.values()))
    pictures = subject.pictures[0].parent
    found = list(Scan(subject.scan(pictures)).rows())
    wanted = list(Scan(subject.scan(pictures, device="cpu", precision="fp32")).rows())
    equal = [a.anomalous == b.anomalous for a, b in zip(found, wanted, strict=True)]
    report.add("decisions_equal", float(np.mean(equal)), at_least=0.995)


def stages(subject: Subject, report: Report) -> None:
    """Time the engine on pixels that are ready, and all that comes before it."""
    engine = engine_for(subject.bundle, device=subject.device)
    report.add("engine_img_s", _engine_speed(subject, engine), "img/s")
    unscored = Scan(subject.scan(subject.archive), open_unscored_stages)
    rows = sum(1 for _ in unscored.rows())
    report.add("decode_img_s", rows / unscored.progress.elapsed(), "img/s")
    report.notes.append("decode_img_s: listed, read, decoded and resized as by a scan; no network")


def scan(subject: Subject, report: Report, engine: str = "auto", name: str = "scan") -> None:
    """Scan the archive to a file, start-up apart; where the time went stands in the notes."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = subject.scan(subject.archive, out=Path(scratch) / "results.parquet", engine=engine)
        summary = Scan(settings).run()
    if summary.failed:
        raise RuntimeError(f"images failed: {summary.failed}")
    report.add(f"{name}_img_s", summary.images_per_second, "img/s")
    report.add(f"{name}_startup_s", summary.startup_seconds, "s")
    spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary.stage_seconds.items())
    report.notes.append(
        f"{summary.images} images by {summary.backend} {summary.precision}; busy seconds: {spent}"
    )


def inductor(subject: Subject, report: Report) -> None:
    """Measure Inductor as an engine, by itself and in a scan."""
    engine = engine_for(subject.bundle, device=subject.device, engine="inductor")
    report.add("inductor_engine_img_s", _engine_speed(subject, engine), "img/s")
    scan(subject, report, "inductor", "inductor_scan")


class Files(torch.utils.data.Dataset[Tensor]):
    """Image files as uint8 [3, S, S]."""

    def __init__(self, paths: list[Path], size: int):
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2 import functional

        image = decode_image(str(self._paths[index]), ImageReadMode.RGB)
        return functional.resize(image, [self._size, self._size], antialias=True)


def loader(subject: Subject, report: Report) -> None:
    """Measure what a user would write first: torchvision in a DataLoader, the model in mixed precision."""
    batches = torch.utils.data.DataLoader(
        Files(_paths(subject), subject.size),
        BATCH,
        num_workers=usable_cores(),
        pin_memory=subject.device != "cpu",
    )
    model = _eager(subject)

    def score(pixels: Tensor) -> Tensor:
        images = pixels.to(subject.device, non_blocking=True).permute(0, 2, 3, 1)
        return model(images).reconstruction_loss

    report.add("loader_img_s", _speed(subject, score, batches), "img/s")


def dali(subject: Subject, report: Report) -> None:
    """Measure DALI's reading, decoding and resizing in front of the same eager model."""
    model, paths = _eager(subject), _paths(subject)
    pipeline = _dali_pipeline(subject, paths, min(BATCH, len(paths)))

    def batches() -> Iterator[Tensor]:
        for _ in range(len(paths) // min(BATCH, len(paths))):
            yield torch.from_dlpack(pipeline.run()[0].as_tensor()).permute(0, 3, 1, 2)

    def score(images: Tensor) -> Tensor:
        x, _ = model.network(images)
        return model.bigan(x)[0]

    report.add("dali_img_s", _speed(subject, score, batches()), "img/s")


def _dali_pipeline(subject: Subject, paths: list[Path], batch: int) -> Any:
    """Make a pipeline from image files to normalized float images [batch, S, S, 3] on the device."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    on_gpu, form = subject.device != "cpu", subject.bundle.manifest.preprocessing

    @pipeline_def(
        batch_size=batch,
        num_threads=usable_cores(),
        device_id=cast("int", (torch.device(subject.device).index or 0) if on_gpu else None),
        prefetch_queue_depth=2,
    )
    def define() -> Any:
        encoded: Any = fn.readers.file(files=[str(path) for path in paths])[0]
        images: Any = fn.decoders.image(
            encoded, device="mixed" if on_gpu else "cpu", output_type=types.DALIImageType.RGB
        )
        linear = types.DALIInterpType.INTERP_LINEAR
        images = fn.resize(images, size=(subject.size,) * 2, interp_type=linear, antialias=True)
        return fn.crop_mirror_normalize(
            images,
            mean=[255 * each for each in form.mean],
            std=[255 * each for each in form.std],
            dtype=types.DALIDataType.FLOAT,
            output_layout="HWC",
        )

    pipeline = define()
    pipeline.build()
    return pipeline


def kernels(_: Subject, report: Report) -> None:
    """Measure the kernels as `python -m benchmarks kernels` does."""
    from .kernels import run

    found = run(argparse.Namespace())
    report.figures += found.figures
    report.notes += found.notes


def decision(subject: Subject, report: Report) -> None:
    """Time the decision over a batch with many support vectors: by NumPy, on the device, and by cuML."""
    from gbad_batch.engine.model.decision import Decision
    from gbad_batch.engine.model.decision_torch import TorchDecision
    from gbad_batch.engine.training.phases.svm import cuml_unusable

    random = np.random.default_rng(0)
    support = random.normal(size=(SUPPORT, 2))
    machine = Decision(
        name="gbad",
        mean=np.zeros(2),
        std=np.ones(2),
        weights=np.ones(2),
        intercept=np.zeros(1),
        support=support,
        coefficients=random.normal(size=SUPPORT),
        gamma=np.full(1, 0.3),
        low=np.full(2, -4.0),
        high=np.full(2, 4.0),
    )
    losses, logits = np.exp(random.normal(size=(2, BATCH))), np.zeros((BATCH, 5))
    on_device = TorchDecision(machine, subject.device)
    report.add("decision_numpy_us", _microseconds(lambda: machine.score(losses[0], losses[1], logits)), "us")
    report.add(
        "decision_torch_us", _microseconds(lambda: on_device.score(losses[0], losses[1], logits)), "us"
    )
    reason = cuml_unusable()
    if reason:
        report.notes.append(f"not compared with cuML: {reason}")
        return
    import cuml.svm

    fitted = cuml.svm.SVC(gamma=0.3, output_type="numpy").fit(support, (np.arange(SUPPORT) % 2))
    values = np.log(losses).T.copy()
    report.add("decision_cuml_us", _microseconds(lambda: fitted.decision_function(values)), "us")
    report.notes.append(f"cuML has {len(fitted.support_vectors_)} support vectors, the others {SUPPORT}")


def tests(_: Subject, report: Report) -> None:
    """Run the tests that need a GPU."""
    import pytest

    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}

    class Counts:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.outcome].append(report.nodeid)

    pytest.main(["-m", "gpu", "-n", "0", "-q", str(ROOT / "tests")], plugins=[Counts()])
    report.add("tests_passed", len(outcomes["passed"]), at_least=1)
    report.add("tests_failed", len(outcomes["failed"]), at_most=0)
    report.add("tests_skipped", len(outcomes["skipped"]))
    report.notes += [f"{outcome}: {test}" for outcome in ("failed", "skipped") for test in outcomes[outcome]]


def _engine_speed(subject: Subject, engine: Engine) -> float:
    """Images a second of an open engine as a scan calls it: a batch for each stream, pixels on the device.

    There a scan's decoder leaves them. From the host's memory a copy would be measured, slower than a GPU's
    engine.
    """
    decode = Decoder(subject.size, DecodeLimits())
    decoded = (decode(Row(path.name), path.read_bytes()) for path in subject.pictures)
    some = np.stack([pixels for pixels in decoded if pixels is not None])
    batch: NDArray[np.uint8] = np.resize(some, (BATCH, *some.shape[1:]))
    pixels = batch if engine.device == "cpu" else torch.from_numpy(batch).to(engine.device)
    with closing(open_engine(engine)) as runner, ThreadPoolExecutor(runner.streams) as pool:
        streams = range(runner.streams)

        def computed(seconds: float) -> int:
            until, count = time.perf_counter() + seconds, 0
            while not count or time.perf_counter() < until:
                runner(pixels)
                count += len(pixels)
            return count

        list(pool.map(computed, [0.0 for _ in streams]))
        began = time.perf_counter()
        count = sum(pool.map(computed, [subject.seconds for _ in streams]))
        return count / (time.perf_counter() - began)


def _paths(subject: Subject) -> list[Path]:
    return sorted(subject.archive.rglob("*.jpg"))


def _eager(subject: Subject) -> GBAD:
    """Give the model as torch runs it by itself, the pyramid as its paper writes it."""
    form = subject.bundle.manifest.preprocessing
    arrays, architecture = subject.bundle.tensors(), subject.bundle.manifest.architecture
    model = GBAD.from_arrays(architecture, arrays, form.mean, form.std).to(subject.device)
    pyramid = model.network.fpn
    pyramid.forward = lambda maps, means=None: pyramid.plain(maps)  # noqa: ARG005
    torch.backends.cudnn.benchmark = True
    return model.requires_grad_(False).to(memory_format=torch.channels_last)


def _speed(subject: Subject, score: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> float:
    """Images a second of a loop in mixed precision that brings each batch's losses back, warmed up."""
    kind = torch.device(subject.device).type
    mixed = torch.autocast(kind, torch.bfloat16 if kind == "cpu" else torch.float16)
    began, count = time.perf_counter(), 0
    with torch.inference_mode(), mixed:
        for number, batch in enumerate(_endless(batches, subject.seconds)):
            if number == WARM_UPS:
                began, count = time.perf_counter(), 0
            score(batch).cpu()
            count += len(batch)
    return count / (time.perf_counter() - began)


def _endless(batches: Iterable[Tensor], seconds: float) -> Iterator[Tensor]:
    """Give batches until so many seconds have passed after those that warm up, or there are no more."""
    until = float("inf")
    for number, batch in enumerate(batches):
        if number == WARM_UPS:
            until = time.perf_counter() + seconds
        if time.perf_counter() > until:
            return
        yield batch


def _microseconds(work: Callable[[], Any], least_s: float = 1.0) -> float:
    work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < least_s:
        work()
        count += 1
    return (time.perf_counter() - began) / count * 1e6


PARTS = {
    each.__name__: each
    for each in (chain, parity, stages, scan, loader, dali, kernels, decision, tests, inductor)
}


def measured(name: str, subject: Subject) -> dict[str, Any]:
    """Run a part and give its figures, as `Report.add` takes them, and its notes."""
    report = Report(name)
    PARTS[name](subject, report)
    return {"figures": [vars(figure) for figure in report.figures], "notes": report.notes}


def main() -> None:
    """Run the part that the command names and write its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    subject = Subject(
        Bundle.read(arguments.model or default_bundle_path()),
        sorted(arguments.pictures.iterdir()),
        arguments.archive,
    )
    arguments.result.write_text(json.dumps(measured(arguments.name, subject)))


if __name__ == "__main__":
    main()
