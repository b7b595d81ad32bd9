"""Settings of a scan, in groups that the command line, a TOML file and Python all fill.

The metadata of each field holds its meaning (`help`) and whether an unfinished scan can be resumed only with
the same value (`resume="same"`) or with another one (`resume="any"`).
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from .errors import Refused
from .system.objects import is_url, located, without_file_scheme

OTHER_FORMATS = (".csv", ".tsv", ".xlsx", ".json", ".jsonl")  # that an output's name must not promise
BATCH_SIZES = {"cpu": 8, "cuda": 256}  # images, where none is given

StrPath = str | os.PathLike[str]
Backend = Literal["auto", "openvino", "tensorrt", "inductor"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Resume = Literal["same", "any"]


def setting(
    default: Any,
    meaning: str,
    *,
    resume: Resume = "any",
    most: float | None = None,
    unit: str = "",
) -> Any:
    """Declare a field: its default, one sentence of help, and whether resuming needs the same value.

    `most` is the largest number allowed; numbers that have one must be above 0. `unit` is that of the value.
    """
    return field(default=default, metadata={"help": meaning, "resume": resume, "most": most, "unit": unit})


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a listing, which are equal but for chance."""

    index: int  # from 0
    count: int

    @classmethod
    def of(cls, text: str) -> "Shard":
        """Read `2/16`; raises Refused."""
        match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
        if not match or not int(match[1]) < int(match[2]):
            raise Refused(
                f"--shard {text!r:.40} is not a part of several: give 0/16 for the first of 16, 15/16 for "
                "the last"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, identity: bytes) -> bool:
        """Tell whether what has this identity (10 bytes) belongs to this shard: it does to exactly one."""
        return int.from_bytes(identity[4:], "little") % self.count == self.index


@dataclass(frozen=True)
class SourceSettings:
    """What to scan, and what to leave out."""

    sources: Sequence[StrPath | bytes] = setting(
        (),
        "Folders, image files, tar shards, glob patterns, or addresses such as s3://bucket/path.",
        resume="same",
    )
    files_from: str | None = setting(
        None, "Read paths from FILE, one per line; - is standard input.", resume="same"
    )
    null: bool = setting(False, "Paths in the list are separated by NUL, as find -print0 writes them.")
    include: Sequence[str] = setting((), "Scan only files that match, e.g. '*.png'.", resume="same")
    exclude: Sequence[str] = setting((), "Skip files that match, e.g. 'thumbs/**'.", resume="same")
    hidden: bool = setting(False, "Include files and folders whose names begin with a dot.", resume="same")
    follow_links: bool = setting(False, "Follow symbolic links in folders.", resume="same")
    limit: int | None = setting(
        None, "Scan only the first N files.", resume="same", most=1 << 62, unit="candidates"
    )
    shard: str | None = setting(
        None,
        "Scan part I of N, from 0/N to N-1/N, to be joined by merge. A file's part follows from its name "
        "alone; a compressed tar is in one. Parts of 25,000 files and more differ by under 2 % in bytes.",
        resume="same",
    )

    @property
    def in_shard(self) -> "Shard | None":
        """Shard to scan, if the listing is divided; raises Refused."""
        return None if self.shard is None else Shard.of(self.shard)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model to use, on which device, and when to raise an alarm."""

    model: StrPath | None = setting(
        None, "Folder of a trained model; default: the demo model.", resume="same"
    )
    device: str = setting(
        "auto", "Device to compute on; cuda takes every visible GPU and never falls back to the CPU."
    )
    engine: Backend = setting("auto", "Backend that runs the networks.", resume="same")
    precision: Precision = setting(
        "auto",
        "Precision of the networks; auto takes the fastest that passes the parity gate on this machine.",
        resume="same",
    )
    cache_dir: StrPath | None = setting(
        None, "Folder for compiled engines; default: the user's cache folder."
    )
    decision: str | None = setting(
        None, "Decision to use: gbad, classes or combined; default: the model's own.", resume="same"
    )
    pfa: float | None = setting(
        None,
        "Share of benign bags that may raise an alarm; default: 0.05.",
        resume="same",
        unit="probability",
    )
    threshold: float | None = setting(
        None, "Raise an alarm at this anomaly_score or above, instead of --pfa.", resume="same", unit="score"
    )
    point: StrPath | None = setting(
        None,
        "Operating point of your own, which calibrate wrote, instead of --pfa and --decision.",
        resume="same",
    )


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """How much of the machine to use, and how large or slow one file may be."""

    batch_size: int | None = setting(
        None,
        "Images per batch; never changes a score. Default: as tuned, else 8 on a CPU and 256 on a GPU.",
        most=4096,
        unit="images",
    )
    threads: int | None = setting(
        None, "CPU cores to use; default: all that affinity and cgroup allow.", most=1024, unit="cores"
    )
    workers: int | None = setting(
        None, "Worker processes; default: one for up to 8 cores, or one per GPU.", most=256, unit="processes"
    )
    ray: str | None = setting(
        None,
        "Run the workers in the Ray cluster at ADDRESS; without one, in that of RAY_ADDRESS or of this "
        "machine, or in a new one here. --threads is then the cores of a worker, and --workers their number "
        "in the cluster.",
    )
    hardware_share: float = setting(
        0.65, "Share of JPEGs to decode on a GPU's JPEG hardware; CUDA cores and the CPU decode the rest."
    )
    max_pixels: int = setting(
        64_000_000,
        "Give larger images the status too_large, without decoding them.",
        resume="same",
        most=1 << 40,
        unit="pixels",
    )
    max_file_size: int = setting(
        256_000_000,
        "Give larger files the status too_large, without reading them.",
        resume="same",
        most=1 << 50,
        unit="bytes",
    )
    decode_timeout: float = setting(
        60.0,
        "Give images that take more CPU time to decode, or ten times as long, the status decoder_timeout.",
        resume="same",
        most=1_000_000,
        unit="seconds",
    )
    max_failures: str | None = setting(None, "Stop with exit code 4 once more images than this have failed.")

    @property
    def failure_limit(self) -> tuple[float, bool] | None:
        """Bound of --max-failures, and whether it is a percentage."""
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


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where to write rows, and what to do with rows that exist already."""

    out: StrPath | None = setting(
        None, "Parquet file to write (also s3://bucket/name), or, with a trailing /, a folder of part files."
    )
    state_dir: StrPath | None = setting(
        None,
        "Local folder for the unfinished rows of an output in an object store; default: the user's state "
        "folder.",
    )
    features: StrPath | None = setting(
        None, "Also store every image's features and logits (float16) in DIR.", resume="same"
    )
    overwrite: bool = setting(
        False, "Replace a finished output; the old one stays until the new one is complete."
    )
    update: bool = setting(
        False,
        "Begin, resume, or scan what is new or changed since a finished output and keep its other rows: the "
        "same command every night.",
    )
    by_content: bool = setting(
        False,
        "With --update: read every file, and let its SHA-256, instead of size and time, decide what is "
        "unchanged; equal bytes are decoded and scored once.",
    )
    keep_gone: bool = setting(
        False,
        "Keep rows of files that are gone, marked in the column gone, instead of dropping them.",
    )
    restart: bool = setting(False, "Discard what an unfinished scan has done.")
    retry: frozenset[str] = setting(
        frozenset(), "Scan rows with these statuses again; 'failed' means all but ok."
    )


@dataclass(frozen=True, kw_only=True)
class ScanSettings(SourceSettings, ModelSettings, LimitSettings, OutputSettings):
    """Settings of one scan; every path may be a str or a Path.

    Raises Refused for impossible values, before anything is opened.
    """

    def __post_init__(self) -> None:
        """Refuse impossible values and combinations."""
        if isinstance(self.sources, str | bytes | os.PathLike):
            object.__setattr__(self, "sources", (self.sources,))
        object.__setattr__(self, "sources", tuple(map(without_file_scheme, self.sources)))
        object.__setattr__(self, "out", self.out and without_file_scheme(self.out))
        check_device(self.device)
        check_point(self.pfa, self.threshold, self.decision, self.point)
        if self.overwrite and self.retry:
            raise Refused("--overwrite and --retry exclude each other: give one of them")
        if self.update and (self.overwrite or self.retry):
            other = "--overwrite" if self.overwrite else "--retry"
            raise Refused(f"--update and {other} exclude each other: give one of them")
        if self.by_content and not self.update:
            raise Refused("--by-content says what --update takes for unchanged: add --update")
        if self.by_content and self.features is not None:
            raise Refused("--by-content and --features exclude each other: leave one of them out")
        if self.ray is not None:
            check_ray(self.ray)
            if self.by_content:
                raise Refused("--by-content and --ray exclude each other: leave one of them out")
        if self.in_shard:
            object.__setattr__(self, "shard", str(self.in_shard))
            if self.limit is not None:
                raise Refused("--shard and --limit exclude each other: give one of them")
            if self.out_is_folder:
                raise Refused(
                    f"a shard is one file: give --out {os.fspath(self.out or '').rstrip('/')}.parquet"
                )
        if not 0 <= self.hardware_share <= 1:
            raise Refused(f"--hardware-share {self.hardware_share:g} is not a share between 0 and 1")
        self._check_out()
        self._check_bounds()
        self.failure_limit  # noqa: B018 - parsed to be refused now

    def _check_out(self) -> None:
        """Refuse an output whose name promises another format than Parquet."""
        if self.out is None:
            return
        if is_url(self.out):
            check_remote_out(self.out)
        if str(self.out) == "-":
            raise Refused(
                "--out - cannot be used, for rows go to a file: give --out results.parquet, and then run "
                "gbad-batch export results.parquet results.csv"
            )
        name = Path(self.out)
        if not self.out_is_folder and name.suffix.lower() in OTHER_FORMATS:
            parquet = name.with_suffix(".parquet")
            raise Refused(
                f"--out {self.out} would be a Parquet file: give --out {parquet}, and then run gbad-batch "
                f"export {parquet} {self.out}"
            )

    def _check_bounds(self) -> None:
        for declaration in fields(self):
            value, most = getattr(self, declaration.name), declaration.metadata["most"]
            if most is not None and value is not None and not 0 < value <= most:
                name = declaration.name.replace("_", "-")
                raise Refused(f"--{name} {value} must be above 0 and at most {most}")

    @property
    def out_path(self) -> Path | None:
        """Output as a path; of one in a store, that of its local copy while it is worked on."""
        return None if self.out is None else local_path(self.out, self.state_dir)

    @property
    def out_name(self) -> str:
        """Output as it is told: the address, or the absolute path."""
        return told(self.out or "")

    @property
    def out_is_folder(self) -> bool:
        """Whether the output was given with a trailing slash: a data set without the last merge."""
        return self.out is not None and os.fspath(self.out).endswith("/")


def check_remote_out(out: StrPath) -> None:
    """Raise Refused for an output in a store that is more than one object."""
    at = located(os.fspath(out))
    if at.root.startswith("http"):
        raise Refused("--out cannot be a web server: name a file, or an object of s3://, gs:// or az://")
    if not at.key or at.key.endswith("/"):
        raise Refused(f"an output in a store is one object: give --out {at.root}/{at.key}results.parquet")


def local_path(out: StrPath, state_dir: StrPath | None = None) -> Path:
    """Return an output as a path; of one in a store, that of its local copy while it is worked on."""
    if not is_url(out):
        return Path(out)
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
    folder = Path(base) / "gbad-batch" if state_dir is None else Path(state_dir).absolute()
    digest = sha256(os.fsencode(out)).hexdigest()[:16]
    return folder / digest / located(os.fspath(out)).key.rpartition("/")[2]


def told(name: StrPath) -> str:
    """Return a file's name as it is told: an address, or the absolute path."""
    return os.fspath(name) if is_url(name) else os.path.abspath(name)  # noqa: PTH100 - keeps links


def check_device(device: str) -> None:
    """Raise Refused for what names no device: only the machine knows whether one that it names is there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3}(,\d{1,3})*)?", device):
        raise Refused(f"--device {device!r:.40} is not auto, cpu, cuda or cuda:N[,N...]: try auto")


def check_ray(address: str) -> None:
    """Raise Refused for what is no address of a Ray cluster that a scan can join."""
    if address.startswith("ray://"):
        raise Refused(
            "--ray takes no ray:// address: run the command on a node, with --ray HOST:PORT or none"
        )
    if not re.fullmatch(r"|auto|local|[\w.:\[\]-]+:\d{1,5}", address):
        raise Refused(
            f"--ray {address!r:.80} is not an address such as 10.0.0.1:6379: to give none, write --ray=auto, "
            "or give --ray behind the sources"
        )


def check_point(
    pfa: float | None, threshold: float | None, decision: str | None, point: StrPath | None
) -> None:
    """Raise Refused for what can be no operating point of any model."""
    given = {"pfa": pfa, "threshold": threshold, "decision": decision}
    for name in (name for name, value in given.items() if value is not None and point is not None):
        raise Refused(f"--point and --{name} exclude each other, for the point says it: give one of them")
    if pfa is not None and threshold is not None:
        raise Refused("--pfa and --threshold exclude each other: give one of them")
    if pfa is not None and not 0 < pfa < 1:
        raise Refused(f"--pfa {pfa:g} is not a probability between 0 and 1: try --pfa 0.05")
    if threshold is not None and not math.isfinite(threshold):
        raise Refused(f"--threshold {threshold} is not a number that a score could reach")


def declared(name: str) -> Field[Any]:
    """Return the field of a setting by its name."""
    return ScanSettings.__dataclass_fields__[name]


def most(name: str) -> int:
    """Return the largest value that a setting may have."""
    return declared(name).metadata["most"]


def fingerprint(settings: ScanSettings, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return everything that must be the same for an unfinished scan to be resumed.

    `resolved` replaces settings by what they were resolved to: the hash of the model, the backend and
    precision that `auto` chose, the operating point.
    """
    same = {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata["resume"] == "same"}
    plain = {name: _as_json(name, value) for name, value in same.items()}
    return plain | resolved


def _as_json(name: str, value: Any) -> Any:
    """Convert a value to the form that is compared: absolute paths; for a list, only whether there is one."""
    if name == "sources":
        names = map(os.fsdecode, value)
        return [name if is_url(name) else os.path.abspath(name) for name in names]  # noqa: PTH100 - keeps links
    if name == "files_from":
        return value is not None
    if name in ("features", "model", "point"):  # of the latter two `resolved` has the content
        return None if value is None else os.path.abspath(value)  # noqa: PTH100 - keeps links
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _documented(group: type) -> None:
    """Add each field's meaning to the docstring that `help()` shows."""
    lines = []
    for each in fields(group):  # type: ignore[arg-type]
        unit = each.metadata["unit"]
        lines.append(f"    {each.name}{f' ({unit})' if unit else ''}: {each.metadata['help']}")
    group.__doc__ = "\n".join([(group.__doc__ or "").rstrip(), "", "Fields:", *lines])


for _group in (SourceSettings, ModelSettings, LimitSettings, OutputSettings, ScanSettings):
    _documented(_group)
