"""What a scan can be told: groups of settings that the command line, a TOML file and Python all fill.

Each field says, in its metadata, what it means (`help`), and whether an unfinished scan can only be resumed
with the same value (`resume="same"`); `resume="any"` fields may differ between runs.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .errors import Refused

BATCH_SIZES = {"cpu": 8, "cuda": 256}  # images, where none is given

StrPath = str | os.PathLike[str]
Backend = Literal["auto", "openvino", "tensorrt", "inductor"]
Precision = Literal["auto", "fp32", "fp16", "int8"]
Resume = Literal["same", "any"]


def setting(
    default: Any,
    meaning: str,
    *,
    resume: Resume = "any",
    most: float | None = None,
    unit: str = "",
) -> Any:
    """Declare a field: its default, one sentence of help, and what resuming a scan asks of it.

    `most` bounds a number, which must be above 0 then; `unit` is that of the value.
    """
    return field(default=default, metadata={"help": meaning, "resume": resume, "most": most, "unit": unit})


@dataclass(frozen=True)
class SourceSettings:
    """What to look at, and what of it to leave out."""

    sources: Sequence[StrPath | bytes] = setting(
        (), "Folders, image files, tar shards or glob patterns.", resume="same"
    )
    files_from: str | None = setting(
        None, "Read paths from FILE, one a line; - is standard input.", resume="same"
    )
    null: bool = setting(False, "The list is NUL-separated, as find -print0 writes it.")
    include: Sequence[str] = setting((), "Only these are candidates, e.g. '*.png'.", resume="same")
    exclude: Sequence[str] = setting((), "These are not, e.g. 'thumbs/**'.", resume="same")
    hidden: bool = setting(False, "Include names that begin with a dot.", resume="same")
    follow_links: bool = setting(False, "Follow symbolic links met in folders.", resume="same")
    limit: int | None = setting(
        None, "Scan only the first N candidates.", resume="same", most=1 << 62, unit="candidates"
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, on what, and what is an alarm."""

    model: StrPath | None = setting(None, "A trained model; default: the demo model.", resume="same")
    device: str = setting("auto", "Where to compute; cuda takes every visible GPU and never falls back.")
    engine: Backend = setting("auto", "Backend that runs the networks.", resume="same")
    precision: Precision = setting(
        "auto", "auto: the fastest that passed the parity gate on this machine.", resume="same"
    )
    cache_dir: StrPath | None = setting(None, "Keep ready engines here, not in the user's cache folder.")
    decision: str | None = setting(
        None, "gbad, classes or combined; default: the model's choice.", resume="same"
    )
    pfa: float | None = setting(
        None, "Alarm on this share of benign bags; default: 0.05.", resume="same", unit="probability"
    )
    threshold: float | None = setting(
        None, "Alarm from this anomaly_score on; excludes --pfa.", resume="same", unit="score"
    )


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """What the machine may spend, and what one file may ask for."""

    batch_size: int | None = setting(
        None,
        "Images computed at once; never changes a score. Default: the tuned size, else 8 on a CPU, 256 on a"
        " GPU.",
        most=4096,
        unit="images",
    )
    threads: int | None = setting(
        None, "Cores to use; default: those that affinity and cgroup allow.", most=1024, unit="cores"
    )
    workers: int | None = setting(
        None, "Worker processes; default: one for up to 8 cores, one a GPU.", most=256, unit="processes"
    )
    hardware_share: float = setting(
        0.65, "Share of JPEGs for a GPU's JPEG hardware; the rest are decoded by CUDA cores and the CPU."
    )
    max_pixels: int = setting(
        64_000_000, "Larger images are not decoded: too_large.", resume="same", most=1 << 40, unit="pixels"
    )
    max_file_size: int = setting(
        256_000_000, "Larger files are not read: too_large.", resume="same", most=1 << 50, unit="bytes"
    )
    decode_timeout: float = setting(
        60.0, "An image that takes longer: decoder_timeout.", resume="same", most=1_000_000, unit="seconds"
    )
    max_failures: str | None = setting(None, "Stop with exit 4 once more images failed (N or N%).")


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where the rows go, and what becomes of rows that are there already."""

    out: StrPath | None = setting(
        None, "results.parquet, or with a trailing / a folder of parts; None stores nothing."
    )
    features: StrPath | None = setting(
        None, "Store each image's features and logits (float16) here.", resume="same"
    )
    overwrite: bool = setting(False, "Replace a finished output, at the very end.")
    restart: bool = setting(False, "Drop what an unfinished scan has done.")
    retry: frozenset[str] = setting(
        frozenset(), "Scan again the rows of these statuses; 'failed' is all but ok."
    )


@dataclass(frozen=True, kw_only=True)
class ScanSettings(SourceSettings, ModelSettings, LimitSettings, OutputSettings):
    """Settings of one scan; str and Path are both taken wherever a path is meant.

    Raises Refused for values that cannot be, before anything is opened.
    """

    def __post_init__(self) -> None:
        """Refuse combinations that cannot be, and bring paths to one form."""
        if isinstance(self.sources, str | bytes | os.PathLike):
            object.__setattr__(self, "sources", (self.sources,))
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3}(,\d{1,3})*)?", self.device):
            raise Refused(f"--device {self.device!r:.40} is not auto, cpu, cuda or cuda:N[,N...]: try auto")
        if self.pfa is not None and self.threshold is not None:
            raise Refused("--pfa and --threshold exclude each other: give one of them")
        if self.pfa is not None and not 0 < self.pfa < 1:
            raise Refused(f"--pfa {self.pfa:g} is not a probability between 0 and 1: try --pfa 0.05")
        if self.overwrite and self.retry:
            raise Refused("--overwrite and --retry exclude each other: give one of them")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise Refused(f"--threshold {self.threshold} is not a number that a score could reach")
        if not 0 <= self.hardware_share <= 1:
            raise Refused(f"--hardware-share {self.hardware_share:g} is not a share between 0 and 1")
        self._check_bounds()
        self.failure_limit  # noqa: B018 - parsed to be refused now

    def _check_bounds(self) -> None:
        for each in fields(self):
            value, most = getattr(self, each.name), each.metadata["most"]
            if most is not None and value is not None and not 0 < value <= most:
                name = each.name.replace("_", "-")
                raise Refused(f"--{name} {value} must be above 0 and at most {most}")

    @property
    def out_path(self) -> Path | None:
        """The output as a path."""
        return None if self.out is None else Path(self.out)

    @property
    def out_is_folder(self) -> bool:
        """Whether the output was given with a trailing slash: a data set without the last merge."""
        return self.out is not None and os.fspath(self.out).endswith("/")

    @property
    def failure_limit(self) -> tuple[float, bool] | None:
        """The bound of --max-failures and whether it is a percentage."""
        if self.max_failures is None:
            return None
        text = self.max_failures.strip()
        try:
            bound = float(text.removesuffix("%"))
        except ValueError:
            bound = -1.0
        if not 0 <= bound < float("inf") or (text.endswith("%") and bound > 100):
            raise Refused(f"--max-failures {text!r} is neither a number nor a percentage: try 100 or 1%")
        return bound, text.endswith("%")


def declared(name: str) -> Field[Any]:
    """Give the field of a setting by its name."""
    return ScanSettings.__dataclass_fields__[name]


def most(name: str) -> int:
    """Give the largest value that a setting may have."""
    return declared(name).metadata["most"]


def fingerprint(settings: ScanSettings, resolved: dict[str, Any]) -> dict[str, Any]:
    """Say what must match for an unfinished scan to be resumed.

    `resolved` replaces settings by what they came to here: the hash of the model, the backend and precision
    that `auto` chose, the operating point.
    """
    same = {each.name: getattr(settings, each.name) for each in fields(settings) if _must_match(each)}
    plain = {name: _as_json(name, value) for name, value in same.items()}
    return plain | resolved


def _must_match(each: Field[Any]) -> bool:
    return each.metadata["resume"] == "same"


def _as_json(name: str, value: Any) -> Any:
    """Give a value the form in which it is compared: paths absolute, and of a list that there is one."""
    if name == "sources":
        return [os.path.abspath(os.fsdecode(source)) for source in value]  # noqa: PTH100 - keeps links
    if name == "files_from":
        return value is not None
    if name in ("features", "model"):
        return None if value is None else os.path.abspath(value)  # noqa: PTH100 - keeps links
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _documented(group: type) -> None:
    """Add each field's meaning to the docstring that `help()` shows."""
    lines = [f"    {each.name}: {each.metadata['help']}" for each in fields(group)]  # type: ignore[arg-type]
    group.__doc__ = "\n".join([(group.__doc__ or "").rstrip(), "", "Fields:", *lines])


for _group in (SourceSettings, ModelSettings, LimitSettings, OutputSettings, ScanSettings):
    _documented(_group)
