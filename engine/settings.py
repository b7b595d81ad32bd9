"""What a scan can be told, in one place: the command line, a TOML file and Python fill the same fields."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import Refused

LARGEST = {
    "batch_size": 4096,  # images; more would wait for each other and fill the memory
    "threads": 1024,  # each has its place in the journal of what is being decoded
    "limit": 1 << 62,
    "max_pixels": 1 << 40,
    "max_file_size": 1 << 50,
    "decode_timeout": 1_000_000,  # seconds; the timers take no more
}

BATCH_SIZES = {"cpu": 8, "cuda": 256}  # images, where none is given

Device = str  # auto, cpu, cuda or cuda:N
Backend = Literal["auto", "openvino", "tensorrt", "inductor"]
Precision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """Settings of one scan; the field's comment says the unit and what None means."""

    sources: tuple[str, ...] = ()  # folders, image files, tar shards, glob patterns
    out: Path | None = None  # results.parquet, or a folder for a data set; None stores nothing
    out_is_folder: bool = False  # given with a trailing slash: a data set without the last merge

    files_from: str | None = None  # a list of paths, one a line; "-" is standard input
    null: bool = False  # the list is NUL-separated
    include: tuple[str, ...] = ()  # patterns; only these are candidates
    exclude: tuple[str, ...] = ()  # patterns; these are not
    hidden: bool = False  # names that begin with a dot, too
    follow_links: bool = False  # symbolic links met in walks, too
    limit: int | None = None  # the first N candidates in order, over the whole scan

    model: Path | None = None  # a bundle; None is the one that comes with the package
    device: Device = "auto"
    engine: Backend = "auto"
    precision: Precision = "auto"
    decision: str | None = None  # gbad, classes, combined; None is the bundle's default
    pfa: float | None = None  # probability of false alarm that sets the thresholds; None is 0.05
    threshold: float | None = None  # on anomaly_score, in place of `pfa`

    batch_size: int | None = None  # images; None: what suits the device, BATCH_SIZES
    threads: int | None = None  # None: what affinity and cgroup allow
    max_pixels: int = 64_000_000  # of one image, from its header
    max_file_size: int = 256_000_000  # bytes of one image file or tar member
    decode_timeout: float = 60.0  # seconds for one image
    hardware_share: float = 0.65  # of JPEGs, for a GPU's JPEG hardware; the others take cores, too
    cache_dir: Path | None = None  # of ready engines; None is the user's cache folder
    features: Path | None = None  # a folder for the features of every image

    overwrite: bool = False
    restart: bool = False
    retry: frozenset[str] = frozenset()  # statuses to scan again; "failed" is all but ok
    max_failures: str | None = None  # N or N%

    def __post_init__(self) -> None:
        """Refuse combinations that cannot be, before anything is opened."""
        if self.pfa is not None and self.threshold is not None:
            raise Refused("--pfa and --threshold exclude each other: give one of them")
        if self.pfa is not None and not 0 < self.pfa < 1:
            raise Refused(f"--pfa {self.pfa:g} is not a probability between 0 and 1: try --pfa 0.05")
        if self.overwrite and self.retry:
            raise Refused("--overwrite and --retry exclude each other: give one of them")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise Refused(f"--threshold {self.threshold} is no number that a score could reach")
        if not 0 <= self.hardware_share <= 1:
            raise Refused(f"--hardware-share {self.hardware_share:g} is not a share between 0 and 1")
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise Refused(f"--{name.replace('_', '-')} {value} must be above 0 and at most {most}")
        self.failure_limit  # noqa: B018 - parsed to be refused now

    def batch_size_on(self, device: str) -> int:
        """Images computed at once on `cpu` or `cuda:N`."""
        return self.batch_size or BATCH_SIZES[device.partition(":")[0]]

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
