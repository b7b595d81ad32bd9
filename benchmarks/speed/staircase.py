"""What each technique brings: images a second, memory, and what it changes, one row a technique."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row
from gbad_batch.engine.settings import BATCH_SIZES

from ..bench.accuracy import agreement
from ..bench.bench import Bench, bench_options, bench_settings, described_bundle, open_bench, untrained
from ..bench.rounds import Spread, Turns
from ..bench.systems import COMMAND, NotRun, spent_on
from ..report import Report
from .operators import operator_ms


@dataclass(frozen=True)
class Step:
    """A row of the staircase."""

    kind: str  # of `peers`
    told: str
    precision: str = "fp32"


STEPS = {
    "eager": Step("eager", "DataLoader, torchvision, eager PyTorch, full FPN"),
    "collapsed": Step("collapsed", "+ collapsed FPN"),
    "channels_last": Step("channels_last", "+ channels_last"),
    "inductor": Step("inductor", "+ Inductor with freezing"),
    "openvino_fp32": Step("openvino_fp32", "OpenVINO FP32 in the same loop"),
    "openvino_int8": Step("openvino_int8", "+ INT8", "int8"),
    "fp32": Step("fp32", "gbad-batch scan: stages overlap, FP32"),
    "int8": Step("int8", "gbad-batch scan, INT8", "int8"),
    "tuned_fp32": Step("fp32", "gbad-batch scan after tune, FP32"),
    "tuned_int8": Step("int8", "gbad-batch scan after tune, INT8", "int8"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle and the steps."""
    add = parser.add_argument
    add("--model", type=Path, metavar="BUNDLE", help="in the place of an untrained ResNeXt-50")
    add("--steps", nargs="+", default=list(STEPS), choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    bench_options(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Let the steps take turns, then say where OpenVINO's time goes and what accuracy it costs."""
    report = Report("Staircase: what each technique brings")
    settings = bench_settings(arguments)
    bundle = arguments.model or untrained(settings.work)
    with open_bench(settings) as bench:
        for name in arguments.steps:
            _open(bench, name, bundle)
        loop, _ = bench.search("eager")
        turns = Turns(bench)
        turns.warm_up()
        for number in range(settings.rounds):
            turns.round(number)
        accuracy = bench.accuracy(bundle)
        operators = _operators(bench, turns, bundle)
        _add_rows(report, bench, turns, accuracy)
        said = {"bundle": described_bundle(bundle), "archive": bench.described()}
    for name, kinds in operators.items():
        rows = [[kind, f"{milliseconds:.3f}"] for kind, milliseconds in kinds.items()]
        report.tables.append([[f"{name}: operator", "ms/img"], *rows])
    report.facts |= said | {"operator_ms": operators}
    report.notes += [f"bundle: {said['bundle']}", f"the user's loop: {loop}"]
    report.notes.append("mAP and agreement on the labelled set are those of the precision, by the command")
    return report


def _open(bench: Bench, name: str, bundle: Path) -> None:
    """Open the system of a step, or note why it is not to be had."""
    step = STEPS[name]
    if name.startswith("tuned"):
        cache = bench.settings.work / "engines-tuned"
        try:
            _tune(bundle, step.precision, cache)
        except NotRun as reason:
            bench.not_run[name] = str(reason)
        else:
            bench.open(name, step.kind, bundle, cache)
    else:
        bench.open(name, step.kind, bundle)


def _tune(bundle: Path, precision: str, cache: Path) -> None:
    """Have the command tune itself in a cache of its own; raises NotRun."""
    if spent_on([*COMMAND, "tune", "--help"]).code:
        raise NotRun("this version has no `gbad-batch tune`")
    print(f"  tuning {precision} ...", file=sys.stderr)
    words = ["tune", "--model", str(bundle), "--device", "cpu", "--precision", precision]
    spent = spent_on([*COMMAND, *words, "--cache-dir", str(cache)])
    if spent.code:
        raise NotRun(spent.said or f"tune ended with exit code {spent.code}")


def _operators(bench: Bench, turns: Turns, bundle: Path) -> dict[str, dict[str, float]]:
    """Profile each OpenVINO engine that ran, by kind of operator."""
    ran = [name for name in ("openvino_fp32", "openvino_int8") if name in turns.runs]
    pixels = _batch(bench.passes.pictures, bundle)
    return {name: operator_ms(bundle, STEPS[name].precision, bench.cache, pixels) for name in ran}


def _batch(pictures: list[Path], bundle: Path) -> np.ndarray:
    """Decode a batch of pictures as a scan does: uint8 [n, S, S, 3]."""
    decode = Decoder(Bundle.read(bundle).manifest.architecture.input_size, DecodeLimits())
    decoded = [decode(Row(path.name), path.read_bytes()) for path in pictures[: BATCH_SIZES["cpu"]]]
    return np.stack([pixels for pixels in decoded if pixels is not None])


def _add_rows(report: Report, bench: Bench, turns: Turns, accuracy: dict[str, float]) -> None:
    """Add a row for each step; agreement is with the command in FP32, on the pictures."""
    rows = [["step", "img/s", "peak MB", "mAP", "agreement", "on the pictures", "what it is"]]
    for name, runs in turns.runs.items():
        speed, peak = Spread.of([run.images_per_second for run in runs]), max(run.peak_mb for run in runs)
        report.add(f"img_s_{name}", speed.median, "img/s")
        report.add(f"peak_mb_{name}", peak, "MB")
        cells = [name, str(speed), f"{peak:.0f}", *_accuracy(STEPS[name].precision, accuracy)]
        rows.append([*cells, _on_pictures(report, turns, name), STEPS[name].told])
    report.tables.append(rows)
    for name, figure in accuracy.items():
        report.add(name, figure)
    for name, why in bench.not_run.items():
        report.not_run[f"img_s_{name}" if name in STEPS else name] = why


def _accuracy(precision: str, accuracy: dict[str, float]) -> list[str]:
    """Write mAP and agreement with FP32 of a precision on the labelled set."""
    measured = accuracy.get(f"map_{precision}")
    if measured is None:
        return ["-", "-"]
    return [f"{measured:.4f}", f"{accuracy['agreement']:.4f}" if precision != "fp32" else "1"]


def _on_pictures(report: Report, turns: Turns, name: str) -> str:
    """Compare what a step wrote in its last round with what the command wrote in FP32."""
    if "fp32" not in turns.runs:
        return "-"
    alike = agreement(turns.out("fp32"), turns.out(name))
    report.add(f"agreement_{name}", alike.decisions)
    report.add(f"loss_rel_max_{name}", alike.loss_rel_max)
    return f"{alike.decisions:.4f}, losses within {alike.loss_rel_max:.1e}"
