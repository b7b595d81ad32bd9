"""An operating point of a site's own, from verdicts on the images of its scan."""

import math
import os
import re
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import DEMO_SENTENCE, Bundle, default_bundle_path, operating_point
from ..datasets.tables import csv_rows
from ..errors import MissingExtra, Refused, how_to_install
from ..report.gallery import Sample
from ..report.tally import DIGEST, Tally, tally_of
from ..results.finished import current_footer, matching_bundle
from ..results.site_point import is_point, write_point
from ..settings import StrPath, check_point
from ..system.durable import check_output
from ..text import counted, timestamp
from .judged import THREAT, UNJUDGED, VERDICTS, Alarms, Drawn, Judged

LEAST_FALSE_ALARMS = 5  # at a threshold: of fewer the rate is known to no better than a factor of 3
SUPPORT = 100  # false alarms from which on a point counts as supported, as in training
COLUMNS = ("sha256", "verdict")


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Which verdicts on which results to learn from. Raises Refused for impossible values."""

    results: Path  # a finished result: a file, or a folder of parts
    verdicts: Path  # CSV with the columns sha256 and verdict, as the report's page writes it
    out: Path  # a new file, or an earlier operating point, which is replaced
    model: StrPath | None = None  # the bundle that the results come from; default: the demo model
    pfa: float | None = None  # probability of false alarm of the new point; default: that of the results

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        check_point(self.pfa, None, None, None)


@dataclass
class Calibrated:
    """What verdicts say of a scan's alarms, and the operating point that follows."""

    results: str
    verdicts: str
    out: str
    model: str
    demo: bool
    images: int  # distinct ones with a score: equal bytes count once
    given: dict[str, int]  # verdicts by value
    now: Alarms  # at the operating point of the results
    top: Alarms | None  # the most anomalous images, as far as each has a verdict; None of a sample
    new: Alarms  # at the new operating point
    point: dict[str, Any]  # the new operating point
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self) | {"use": DEMO_SENTENCE if self.demo else None}


def calibrate(settings: CalibrateSettings) -> Calibrated:
    """Write an operating point whose rate of false alarms is known by verdicts; returns the figures.

    Every image at or above its threshold has a verdict, or every one of a sample. Raises Refused, and writes
    nothing, if the verdicts are not of these results, do not suffice, or the output is another file;
    MissingExtra without SciPy.
    """
    if not find_spec("scipy"):
        raise MissingExtra(f"calibrate needs SciPy, which is not installed: {how_to_install('statistics')}")
    footer = current_footer(settings.results)
    bundle = matching_bundle(Path(settings.model or default_bundle_path()), settings.results, footer)
    check_output(settings.out, "an operating point", is_point)
    former = footer["operating_point"]
    judged = _judged(settings, tally_of(settings.results), former["threshold"])
    pfa = settings.pfa or former["pfa"]
    new = _supported(judged, pfa, settings)
    point = replace(
        operating_point(bundle, footer["precision"], former["decision"], pfa),
        precision=footer["precision"],
        threshold=new.threshold,
        interval=new.interval,
        supported=new.false >= SUPPORT,
    )
    given = np.bincount(judged.verdicts, minlength=4)
    calibrated = Calibrated(
        results=os.path.abspath(settings.results),  # noqa: PTH100 - keeps links
        verdicts=os.path.abspath(settings.verdicts),  # noqa: PTH100
        out=os.path.abspath(settings.out),  # noqa: PTH100
        model=f"{bundle.manifest.name} ({bundle.hash[:12]})",
        demo=bundle.manifest.demo,
        images=len(judged.scores),
        given={name: int(given[number]) for name, number in VERDICTS.items()},
        now=judged.alarms(former["threshold"]),
        top=judged.top() if judged.drawn is None else None,
        new=new,
        point=asdict(point),
        notes=_open_questions(judged, new),
    )
    origin = {"results": calibrated.results, "scan_id": footer["scan_id"], "created": timestamp()}
    origin |= {"images": calibrated.images, "verdicts": calibrated.given, "alarms": asdict(new)}
    _write(settings.out, point, bundle, origin)
    return calibrated


def _write(out: Path, point: Any, bundle: Bundle, origin: dict[str, Any]) -> None:
    try:
        write_point(out, point, bundle, origin)
    except OSError as error:
        raise Refused(f"{out} cannot be written: {error.strerror}; nothing was written") from None


# --- reading verdicts ---


@dataclass(frozen=True)
class _Verdict:
    """One line of a file of verdicts."""

    value: int
    origin: str
    name: str  # of the image, for a person


def _read_verdicts(path: Path) -> tuple[dict[bytes, _Verdict], int | None]:
    """Read verdicts by SHA-256, and how many images were drawn if they are of a sample.

    A blank is no verdict. Raises Refused with the line that is wrong.
    """
    header, lines = csv_rows(path)
    columns = [column.strip().lower() for column in header]
    if not set(COLUMNS) <= set(columns) or len(set(columns)) < len(columns):
        raise Refused(f"{path}, line 1: verdicts need the columns sha256 and verdict: download them again")
    at = [columns.index(name) for name in COLUMNS]
    uri, drawn = (columns.index(name) if name in columns else None for name in ("uri", "sample"))
    found: dict[bytes, _Verdict] = {}
    samples = set[str]()
    for origin, line in lines:
        if len(line) != len(columns):
            raise Refused(f"{origin}: {len(columns)} values are expected, not {len(line)}")
        digest, value = (line[k].strip().lower() for k in at)
        if not value:
            continue
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise Refused(f"{origin}: {digest!r:.80} is not a SHA-256 of 64 hexadecimal digits")
        if value not in VERDICTS:
            raise Refused(f"{origin}: the verdict {value!r:.80} is none of {', '.join(VERDICTS)}")
        verdict = _Verdict(VERDICTS[value], origin, digest if uri is None else line[uri])
        samples.add("" if drawn is None else line[drawn].strip())
        former = found.setdefault(bytes.fromhex(digest), verdict)
        if former.value != verdict.value:
            raise Refused(f"{origin}: {verdict.name!r:.200} has another verdict in {former.origin}: keep one")
    if not found:
        raise Refused(f"{path} holds no verdict: give some in the report, and download them again")
    return found, _sample_size(path, samples)


def _sample_size(path: Path, samples: set[str]) -> int | None:
    """Return the one number in the column `sample`; raises Refused if there are several, or no number."""
    text, *others = sorted(samples)
    if others or not re.fullmatch(r"|[1-9]\d{0,8}", text):
        raise Refused(
            f"{path} has {', '.join(map(repr, [text, *others]))[:80]} in the column sample: give verdicts on "
            "one sample, or on none, as a report downloads them"
        )
    return int(text) if text else None


def _judged(settings: CalibrateSettings, tally: Tally, threshold: float) -> Judged:
    """Match verdicts to the distinct images of the results; raises Refused if one has no image there."""
    found, sample_size = _read_verdicts(settings.verdicts)
    wanted = {digest[:DIGEST]: verdict for digest, verdict in found.items()}
    starts = np.frombuffer(b"".join(wanted), np.uint64)[::2]
    verdicts, seen = np.full(len(tally.digests), UNJUDGED, np.int8), set[bytes]()
    for row in np.flatnonzero(np.isin(tally.halves[:, 0], starts)):
        digest = tally.digests[row].tobytes()
        if digest in wanted:  # else only the first half is equal
            verdicts[row] = wanted[digest].value
            seen.add(digest)
    _check_known(settings, wanted, seen)
    distinct = tally.distinct()
    drawn = None if sample_size is None else _drawn(tally, distinct, threshold, sample_size)
    return Judged(tally.scores[distinct], verdicts[distinct], drawn)


def _drawn(tally: Tally, distinct: NDArray[np.intp], threshold: float, size: int) -> Drawn | None:
    """Draw the same sample of alarms as a report did; None if it holds all of them."""
    sample = Sample.of(tally, threshold, size)
    if len(sample.positions) == sample.alarms:
        return None
    return Drawn(np.isin(distinct, sample.positions), threshold, len(sample.positions) / sample.alarms)


def _check_known(settings: CalibrateSettings, wanted: dict[bytes, _Verdict], seen: set[bytes]) -> None:
    unknown = [verdict for digest, verdict in wanted.items() if digest not in seen]
    if unknown and not seen:
        raise Refused(
            f"{settings.results} holds none of the images of {settings.verdicts}: give the results whose "
            "report the verdicts come from"
        )
    if unknown:
        raise Refused(
            f"{unknown[0].origin}: {settings.results} holds no scored image with the SHA-256 of "
            f"{unknown[0].name!r:.200} ({counted(len(unknown), 'such line')}): give the results whose report "
            "the verdicts come from, or leave these lines out"
        )


# --- the operating point ---


def _supported(judged: Judged, pfa: float, settings: CalibrateSettings) -> Alarms:
    """Return the alarms at the threshold for `pfa`; raises Refused if verdicts do not suffice."""
    expected, harmless = judged.allowed(pfa), judged.harmless
    if expected < LEAST_FALSE_ALARMS:
        least = math.ceil(1e4 * LEAST_FALSE_ALARMS / max(1, harmless * judged.share)) / 1e4
        more = "a larger sample" if judged.drawn else "a scan of more images"
        other = f"ask for --pfa {least:g} or more, or " if least < 1 else ""
        raise Refused(
            f"PFA {pfa:g} of the {harmless} harmless images in {settings.results} is {expected:.2g} false "
            f"alarms among those judged, and a threshold needs {LEAST_FALSE_ALARMS}: {other}judge {more}, "
            f"{math.ceil(LEAST_FALSE_ALARMS / max(expected, 0.01) * 10) / 10:g} times as many"
        )
    threshold = judged.threshold(pfa)
    new = None if threshold is None else judged.alarms(threshold)
    if new is None:
        raise Refused(
            f"PFA {pfa:g} lies below the alarms of {settings.results}, of which the sample was drawn: ask "
            "for a smaller --pfa, or draw another sample after `gbad-batch decide` with a larger one"
        )
    if new.unjudged and judged.drawn:
        raise Refused(
            f"PFA {pfa:g} needs a verdict on each of the {new.drawn} images of the sample that score "
            f"{new.threshold:.4g} or above, and {new.unjudged} of them have none: judge them"
        )
    if new.unjudged:
        top = judged.top()
        most = math.floor(1e4 * (top.false + top.unsure) / harmless) / 1e4
        other = f", or ask for --pfa {most:g}" if most * harmless >= LEAST_FALSE_ALARMS else ""
        raise Refused(
            f"PFA {pfa:g} needs a verdict on each of the {new.images} most anomalous distinct images, and "
            f"{new.unjudged} of them have none (the first at rank {top.images + 1}): judge them in a report "
            f"with --top {new.images}, or a random --sample of the alarms{other}"
        )
    return new


def _open_questions(judged: Judged, new: Alarms) -> list[str]:
    """Say what the figures leave open."""
    below = judged.verdicts[judged.scores < new.threshold]
    unjudged, threats = int((below == UNJUDGED).sum()), new.true + int((below == THREAT).sum())
    notes = [
        (
            f"{counted(unjudged, 'image')} below it without a verdict count as harmless: if x % of them "
            "hold a threat, the PFA is larger by x % of itself"
        ),
        (
            f"{new.true} of the {counted(threats, 'threat')} judged alarm there; what share of all threats "
            "is found cannot be told, since nobody looked at the rest"
        ),
    ]
    if new.unsure:
        notes.append(
            f"{counted(new.unsure, 'alarm')} at the new point unsure: the threshold takes them for false, "
            "and the interval holds whichever they are"
        )
    return notes
