"""Images a second of the real command, beside those of its peers and of bare native calls on all cores."""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gbad_batch.engine.system.machine import cpu_flags

from ..bench.bench import bench_options, bench_settings
from ..bench.systems import Measured
from ..report import Report, Table
from .measuring import DEFAULT, PEER, SYSTEMS, Found, Profile, Settings, measure

# against the user's loop, on CPUs with and without VNNI
BARS = {True: {"int8": 8.0, "fp32": 2.5}, False: {"int8": 5.0, "fp32": 2.2}}
FRACTIONS = {"resnext50": 0.95, "default": 0.92}  # of the limit, by bundle
STARTUP_S = 5.0
MAP_DROP, AGREEMENT = 0.005, 0.995
PERCENTILES = (50, 95, 99)


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    add = parser.add_argument
    add("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    add("--resnext", type=Path, metavar="BUNDLE", help="in the place of an untrained ResNeXt-50")
    add("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS, metavar="NAME", help=", ".join(SYSTEMS))
    add("--no-cold", dest="cold", action="store_false", help="leave the machine's page cache alone")
    bench_options(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Measure and report."""
    found = measure(
        Settings(
            bench=bench_settings(arguments),
            resnext=arguments.resnext,
            model=arguments.model,
            systems=arguments.systems,
            cold=arguments.cold,
        )
    )
    report = Report("Images a second, end to end and by stage, start-up apart")
    add_figures(report, found)
    add_bars(report, found)
    return report


def add_figures(report: Report, found: Found) -> None:
    """Add speeds, ratios, stages and what they were measured on, without bars."""
    report.facts |= {
        "vnni": has_vnni(),
        "images_per_second": {name: found.speed(name).median for name in found.runs},
        "systems": {name: _system(found, name) for name in found.runs},
        "stages": {role: _stages(found, role) for role in found.profiles},
        "bundles": found.bundles,
        "archive": found.archive,
        "loop": {"settings": str(found.loop), "searched": found.searched},
    }
    report.tables.append(_systems_table(found))
    for role, profile in found.profiles.items():
        if profile.native:
            report.tables.append(_limit_table(found, role, profile))
        report.tables.append(_stages_table(found, role, profile))
    report.notes += [f"{role}: {said}" for role, said in found.bundles.items()]
    report.notes.append("{images} images, {mean_bytes} bytes on average: {from}".format(**found.archive))
    report.notes.append(f"the user's loop, {PEER}: {found.loop}; medians of rounds with their range")
    report.add("images_missing", found.missing, at_most=0)


def add_bars(report: Report, found: Found) -> None:
    """Add the figures that are held to something; what was not to be had is named."""
    vnni = has_vnni()
    for name, least in BARS[vnni].items():
        _add_ratio(report, found, name, least)
        other = f"ratio_{name}_{'without' if vnni else 'with'}_vnni"
        report.not_run[other] = f"this CPU has {'VNNI' if vnni else 'no VNNI'}"
    for name in found.runs:
        if name not in (PEER, DEFAULT, *BARS[vnni]):
            _add_ratio(report, found, name)
    for role in ("resnext50", "default"):
        _add_fraction(report, found, role)
    _add_startup(report, found)
    _add_accuracy(report, found)
    _add_cold(report, found)


def has_vnni() -> bool:
    """Tell whether the CPU multiplies 8-bit integers into 32-bit sums in one instruction."""
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni"})


def _add_ratio(report: Report, found: Found, name: str, least: float | None = None) -> None:
    if name not in found.runs or PEER not in found.runs:
        report.not_run[f"ratio_{name}"] = found.not_run.get(name) or found.not_run[PEER]
        return
    spread = found.ratio(name)
    report.add(f"ratio_{name}", spread.median, "times", at_least=least)
    report.add(f"ratio_{name}_low", spread.low, "times")
    report.add(f"ratio_{name}_high", spread.high, "times")


def _add_fraction(report: Report, found: Found, role: str) -> None:
    """Add the limit with a bundle, and the share of it that the command reaches."""
    name, profile = f"fraction_of_limit_{role}", found.profiles.get(role)
    if profile is None:
        report.not_run[name] = found.not_run.get("fp32" if role == "resnext50" else DEFAULT, "no scan ran")
    elif not profile.native:
        report.not_run[name] = found.not_run[name]
    else:
        fraction = found.fraction(role)
        report.add(f"limit_img_s_{role}", profile.limit.median, "img/s")
        report.add(name, fraction.median, at_least=FRACTIONS[role])
        report.add(f"{name}_low", fraction.low)
        report.add(f"{name}_high", fraction.high)


def _add_startup(report: Report, found: Found) -> None:
    """Add the slower of both bundles: until a scan begins, and from its end on."""
    took = [
        _median([run.startup_seconds for run in found.runs[each.system]]) for each in found.profiles.values()
    ]
    if took:
        report.add("startup_seconds", max(took), "s", at_most=STARTUP_S)
    else:
        report.not_run["startup_seconds"] = "no scan ran"


def _add_accuracy(report: Report, found: Found) -> None:
    for name in ("map_fp32", "map_int8"):
        if name in found.accuracy:
            report.add(name, found.accuracy[name])
    if {"map_fp32", "map_int8"} <= found.accuracy.keys():
        drop = found.accuracy["map_fp32"] - found.accuracy["map_int8"]
        report.add("map_drop", drop, at_most=MAP_DROP)
        report.add("agreement", found.accuracy["agreement"], at_least=AGREEMENT)
    named = ("map_fp32", "map_int8", "agreement")
    report.not_run |= {name: found.not_run[name] for name in named if name in found.not_run}


def _add_cold(report: Report, found: Found) -> None:
    if found.cold is not None:
        report.add("img_s_cold", found.cold.images_per_second, "img/s")
    else:
        report.not_run["img_s_cold"] = found.not_run.get("img_s_cold", "not asked for")


def _system(found: Found, name: str) -> dict[str, object]:
    """Give what a record says of a system."""
    runs, speed = found.runs[name], found.speed(name)
    batches = [each for run in runs for each in run.batch_ms]
    alike = found.agreements.get(name)
    return {
        "img_s": speed.median,
        "img_s_low": speed.low,
        "img_s_high": speed.high,
        "images": runs[-1].images,
        "cpu_seconds_an_image": _median([run.cpu_seconds / run.images for run in runs]),
        "peak_mb": max(run.peak_mb for run in runs),
        "startup_seconds": _median([run.startup_seconds for run in runs]),
        "warmup_seconds": runs[-1].warmup_seconds,
        "batch_ms": _percentiles(batches),
        "agreement_with_fp32": asdict(alike) if alike else None,
    }


def _systems_table(found: Found) -> Table:
    head = ["system", "img/s", "times the loop", "CPU s/img", "peak MB", "start-up s", "warm-up s"]
    rows = [[*head, "batch ms p50/95/99"]]
    for name, runs in found.runs.items():
        told = _system(found, name)
        ratio = str(found.ratio(name)) if PEER in found.runs else "-"
        cells = [name, str(found.speed(name)), ratio, f"{told['cpu_seconds_an_image']:.4f}"]
        cells += [f"{told['peak_mb']:.0f}", f"{told['startup_seconds']:.2f}", f"{told['warmup_seconds']:.2f}"]
        rows.append([*cells, _written([each for run in runs for each in run.batch_ms])])
    return rows


def _stages(found: Found, role: str) -> dict[str, object]:
    """Give what a record says of the stages of a scan, and of the bare calls below them."""
    profile = found.profiles[role]
    return {
        "system": profile.system,
        "precision": profile.precision,
        "limit_us": profile.microseconds() if profile.native else None,
        "busy_us": _busy_us(found.runs[profile.system]),
    }


def _limit_table(found: Found, role: str, profile: Profile) -> Table:
    """Write what each bare native call takes of a core, and what the scan takes beyond them."""
    spent = profile.microseconds()
    runs = found.runs[profile.system]
    scan = _median([profile.native[0].cores * run.seconds / run.images * 1e6 for run in runs])
    rows = [[f"{role} {profile.precision}: bare call on all cores", "core us/img", "share of the scan"]]
    rows += [[step, f"{us:.0f}", f"{us / scan:.1%}"] for step, us in spent.items()]
    limit = sum(spent.values())
    rows.append([f"limit: {profile.limit} img/s", f"{limit:.0f}", f"{limit / scan:.1%}"])
    rows.append([f"scan: {found.speed(profile.system)} img/s", f"{scan:.0f}", "100.0%"])
    return rows


def _stages_table(found: Found, role: str, profile: Profile) -> Table:
    """Write the busy time of each stage, as the scan itself measures it."""
    rows = [[f"{role} {profile.precision}: stage of the scan", "busy us/img"]]
    return rows + [[name, f"{us:.1f}"] for name, us in _busy_us(found.runs[profile.system]).items()]


def _busy_us(runs: Sequence[Measured]) -> dict[str, float]:
    """Give the busy time of each stage, us an image over all threads: the median of rounds."""
    names = runs[-1].stage_seconds
    return {
        name: _median([run.stage_seconds.get(name, 0.0) / run.images for run in runs]) * 1e6 for name in names
    }


def _percentiles(batch_ms: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(batch_ms, p)) for p in PERCENTILES} if batch_ms else {}


def _written(batch_ms: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in _percentiles(batch_ms).values()) or "-"


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
