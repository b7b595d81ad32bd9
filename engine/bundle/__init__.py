"""A trained model on disk: reads, verifies and writes files; computes nothing.

A bundle is a folder with a fixed list of files. Each is opened without following links, read up to a limit
and hashed as read, so that the bytes that were checked are the bytes that are used. It holds no pickle and no
reference to anything outside the folder.
"""

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BundleError, Refused
from ..model.typicality import Typicality
from ..row import THREATS
from ..system.durable import rename, write_whole
from ..tar.headers import members
from ..tar.streams import ArchiveFault, PlainStream
from ..text import one_line
from .ir_check import check_ir
from .manifest import (
    FORMAT,
    OPTIONAL_FILES,
    REQUIRED_FILES,
    Manifest,
    Quantiles,
    StoredPoint,
    parse_manifest,
)
from .onnx_check import FLOAT, UINT8, Port, check_graph
from .tensors import parse_tensors

DEMO_SENTENCE = "trained on synthetic images, not for operational decisions"
DEFAULT_PFA = 0.05
MANIFEST = "bundle.json"
LARGEST_MANIFEST = 16 << 20  # bytes
MOST_GATE_IMAGES = 10_000
LARGEST_GATE_IMAGE = 16 << 20  # bytes
GATE_EXPECTED = "expected.json"

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gate:
    """Images on which an engine must agree with FP32, and their FP32 values."""

    names: tuple[str, ...]
    images: tuple[bytes, ...] = field(repr=False)  # JPEG, at the input size
    reconstruction_loss: Floats  # [n]
    feature_matching_loss: Floats  # [n]
    logits: Floats  # [n, 5]


@dataclass(frozen=True)
class OperatingPoint:
    """The thresholds of a scan."""

    decision: str
    precision: str  # of the calibration; fp32 if the engine's own precision was not calibrated
    pfa: float  # probability of false alarm: as given, or estimated for a given threshold
    threshold: float  # on anomaly_score; an image at or above it is an alarm
    class_thresholds: tuple[float, ...]  # [5] on p_*, of the nearest stored operating point
    interval: tuple[float, float] | None  # 95 % confidence, of pfa; None if it was not measured
    supported: bool  # calibration had enough benign images for this pfa

    def notes(self, precision: str) -> list[str]:
        """Return remarks on its use with an engine of this precision."""
        notes = []
        if not self.supported:
            notes.append(f"calibration held too few benign images to support PFA {self.pfa:.3g}")
        if self.precision != precision:
            notes.append(
                f"the operating point is that of {self.precision}: this precision has none of its own"
            )
        return notes


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle; all its contents were hashed and checked when it was read."""

    path: Path
    hash: str  # SHA-256 of bundle.json, hex, which holds those of all other files
    manifest: Manifest
    files: Mapping[str, bytes] = field(repr=False)
    _gate: Gate = field(repr=False)
    _tensors: Mapping[str, NDArray[Any]] = field(repr=False)

    @classmethod
    def read(cls, path: Path | str) -> "Bundle":
        """Read and verify the bundle in folder `path`; raises BundleError with the first check that fails."""
        path = Path(path)
        try:
            return _read(path)
        except BundleError as error:
            raise BundleError(
                f"{path} is not a usable bundle: {error}; "
                "give another with --model, or copy or train it again"
            ) from None

    def write(self, path: Path | str) -> "Bundle":
        """Write this bundle, which may have been changed in memory, as `write_bundle` does."""
        return write_bundle(path, self.manifest.document(), self.files)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Return the weights, statistics and decision arrays by name, read-only."""
        return self._tensors

    def typicality(self) -> Typicality | None:
        """Return how typical features are told; None if the bundle does not know."""
        return Typicality.from_tensors(self._tensors, self.manifest.architecture.features)

    def trunk(self, precision: str) -> str:
        """Name what gives x and logits in this precision: a SHA-256, hex.

        Bundles with the same one, such as a bundle and what `adapt` makes of it, share stored features.
        """
        names = OPTIONAL_FILES if precision == "int8" else ("network.onnx",)
        told = ":".join(self.manifest.files[name].sha256 for name in names)
        if precision == "bf16":
            told += f":{precision}"
        return hashlib.sha256(told.encode()).hexdigest()

    def gate(self) -> Gate:
        """Return the images of the parity gate and their FP32 values."""
        return self._gate

    @property
    def network_onnx(self) -> bytes:
        """ONNX graph of pixels uint8 [N, S, S, 3] -> x [N, features] and logits [N, 5], float32."""
        return self.files["network.onnx"]

    @property
    def bigan_onnx(self) -> bytes:
        """ONNX graph of x [N, features] -> reconstruction_loss [N] and feature_matching_loss [N], float32."""
        return self.files["bigan.onnx"]

    @property
    def has_int8(self) -> bool:
        """Whether the bundle holds the INT8 network."""
        return set(OPTIONAL_FILES) <= self.files.keys()

    @property
    def has_bf16(self) -> bool:
        """Whether the bundle knows operating points of its network in bfloat16."""
        return "bf16" in self.manifest.operating_points

    @property
    def network_int8(self) -> tuple[bytes, bytes]:
        """The INT8 network, an OpenVINO model with the same inputs and outputs: XML and constants."""
        xml, constants = OPTIONAL_FILES
        return self.files[xml], self.files[constants]


def default_bundle_path() -> Path:
    """Return the folder of the bundle that comes with the package."""
    return Path(__file__).parents[1] / "default_bundle"


def _read(path: Path) -> Bundle:
    # the folder itself may be a link: hashes cover its contents only
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BundleError("the folder does not exist") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"it cannot be opened as a folder ({one_line(error)})") from None
    try:
        _check_names(folder)
        data = _read_file(folder, MANIFEST, LARGEST_MANIFEST)
        files = _Files(folder, parse_manifest(data))
        tensors, gate = files.checked()
    finally:
        os.close(folder)
    return Bundle(path, hashlib.sha256(data).hexdigest(), files.manifest, files.contents, gate, tensors)


def _check_names(folder: int) -> None:
    """Raise BundleError unless every entry has a known name and is not a link: hashes cover no other."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise BundleError(f"{entry.name!r:.80} is a link, and a bundle holds regular files only")
            if entry.name not in (MANIFEST, *REQUIRED_FILES, *OPTIONAL_FILES):
                raise BundleError(f"it holds {entry.name!r:.80}, which is not a file of a bundle")


def _read_file(folder: int, name: str, most: int) -> bytes:
    """Read a regular file of at most `most` bytes; opening neither follows a link nor waits on a pipe."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(name, flags, dir_fd=folder), "rb") as file:  # noqa: PTH123 - a descriptor
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{name} is not a regular file")
            if status.st_size > most:
                raise BundleError(f"{name} has {status.st_size} bytes, above the limit of {most}")
            return file.read(status.st_size + 1)  # Python allocates the size that it is given
    except FileNotFoundError:
        raise BundleError(f"{name} is missing") from None
    except OSError as error:
        raise BundleError(f"{name} cannot be read ({error.strerror})") from None


class _Files:
    """The files of a bundle; each is checked before the next is read, so that no damage costs all of them."""

    def __init__(self, folder: int, manifest: Manifest):
        self.manifest = manifest
        self.contents: dict[str, bytes] = {}
        self._folder = folder

    def checked(self) -> "tuple[dict[str, NDArray[Any]], Gate]":
        """Read all files; returns weights and gate. Raises BundleError with the first check that fails."""
        size, features = self.manifest.architecture.input_size, self.manifest.architecture.features
        x = {"x": (FLOAT, (None, features))}
        pixels = {"pixels": (UINT8, (None, size, size, 3))}
        logits = {"logits": (FLOAT, (None, len(THREATS)))}
        losses: dict[str, Port] = dict.fromkeys(
            ("reconstruction_loss", "feature_matching_loss"), (FLOAT, (None,))
        )
        self._read("README.md")
        gate = unpack_gate(self._read("gate.tar"))
        check_graph(self._read("network.onnx"), "network.onnx", pixels, x | logits)
        check_graph(self._read("bigan.onnx"), "bigan.onnx", x, losses)
        if set(OPTIONAL_FILES) <= self.manifest.files.keys():
            xml, constants = OPTIONAL_FILES
            features_int8 = {"x": ("f32", (None, features)), "logits": ("f32", (None, len(THREATS)))}
            pixels_int8 = {"pixels": ("u8", (None, size, size, 3))}
            weights = self.manifest.files[constants].bytes
            check_ir(self._read(xml), weights, xml, pixels_int8, features_int8)
            self._read(constants)
        tensors = parse_tensors(self._read("weights.safetensors"), "weights.safetensors")
        _check_tensors(tensors, self.manifest)
        return tensors, gate

    def _read(self, name: str) -> bytes:
        record = self.manifest.files[name]
        data = _read_file(self._folder, name, record.bytes)
        if len(data) != record.bytes:
            raise BundleError(f"{name} has {len(data)} bytes, but {MANIFEST} says {record.bytes}")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise BundleError(f"{name} is not the file that {MANIFEST} was written for (its SHA-256 differs)")
        self.contents[name] = data
        return data


def _check_tensors(tensors: Mapping[str, NDArray[Any]], manifest: Manifest) -> None:
    features = manifest.architecture.features
    for name in ("standardize.mean", "standardize.std"):
        if name not in tensors or tensors[name].shape != (features,) or tensors[name].dtype != np.float32:
            raise BundleError(f"weights.safetensors lacks {name} of {features} float32 numbers")
    if tensors["standardize.std"].min() <= 0:
        raise BundleError("weights.safetensors: standardize.std is not above 0 everywhere")
    for decision in manifest.decisions:
        if not any(name.startswith(f"decision.{decision}.") for name in tensors):
            raise BundleError(f"weights.safetensors lacks the arrays of the decision {decision!r}")
    Typicality.from_tensors(tensors, features)


# --- the parity gate ---


def pack_gate(
    images: Sequence[bytes],
    reconstruction_loss: ArrayLike,
    feature_matching_loss: ArrayLike,
    logits: ArrayLike,
) -> bytes:
    """Pack JPEG images at the input size and their FP32 values [n], [n], [n, 5]; reproducible to the byte."""
    names = [f"gate-{i:04d}.jpg" for i in range(len(images))]
    expected = {
        "names": names,
        "reconstruction_loss": np.asarray(reconstruction_loss, np.float64).tolist(),
        "feature_matching_loss": np.asarray(feature_matching_loss, np.float64).tolist(),
        "logits": np.asarray(logits, np.float64).tolist(),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [*zip(names, images, strict=True), (GATE_EXPECTED, json.dumps(expected).encode())]:
            member = tarfile.TarInfo(name)  # no time and no owner, so that the bytes are reproducible
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    unpack_gate(out.getvalue())
    return out.getvalue()


def unpack_gate(data: bytes) -> Gate:
    """Read images and FP32 values from the bytes of gate.tar; raises BundleError if they do not match."""
    members = _members(data)
    try:
        expected = json.loads(members.pop(GATE_EXPECTED, b""))
    except (ValueError, RecursionError):
        raise BundleError(f"gate.tar: {GATE_EXPECTED} is missing or is not JSON") from None
    names = tuple(members)
    fields = ("names", "reconstruction_loss", "feature_matching_loss", "logits")
    if not isinstance(expected, dict) or expected.keys() != set(fields) or expected["names"] != list(names):
        raise BundleError(f"gate.tar: {GATE_EXPECTED} does not list the images of the archive")
    if not names:
        raise BundleError("gate.tar holds no image, so no engine could be checked")
    n = len(names)
    return Gate(
        names,
        tuple(members.values()),
        _expected(expected, "reconstruction_loss", (n,)),
        _expected(expected, "feature_matching_loss", (n,)),
        _expected(expected, "logits", (n, len(THREATS))),
    )


def _members(data: bytes) -> dict[str, bytes]:
    """Read the regular files of a tar in order, each up to a limit."""
    contents: dict[str, bytes] = {}
    stream = PlainStream(lambda size, offset: data[offset : offset + size], len(data))
    try:
        for member in members(stream):
            name = member.name.decode("utf-8", "backslashreplace")
            if len(contents) > MOST_GATE_IMAGES:
                raise BundleError(f"gate.tar holds more than {MOST_GATE_IMAGES} images")
            if member.kind != "file" or "/" in name or name in contents:
                raise BundleError(f"gate.tar: {name!r:.80} is not a regular file with a unique, plain name")
            if member.size > LARGEST_GATE_IMAGE:
                raise BundleError(f"gate.tar: {name!r:.80} is larger than {LARGEST_GATE_IMAGE} bytes")
            contents[name] = stream.read(member.size)
    except ArchiveFault as fault:
        raise BundleError(f"gate.tar is damaged or not a tar ({fault})") from None
    return contents


def _expected(expected: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Floats:
    try:
        values = np.array(expected[name], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape != shape or not np.isfinite(values).all():
        raise BundleError(
            f"gate.tar: {name} in {GATE_EXPECTED} is not {' x '.join(map(str, shape))} finite numbers"
        )
    return values


# --- operating points ---


def operating_point(
    bundle: Bundle,
    precision: str,
    decision: str | None = None,
    pfa: float | None = None,
    threshold: float | None = None,
) -> OperatingPoint:
    """Choose the thresholds of a scan.

    A probability of false alarm (default 0.05) selects the score threshold that this share of benign
    calibration images reached: that of the stored operating point if one was measured for it, else by the
    benign quantiles. Class thresholds are those of the nearest stored operating point. A precision without
    operating points of its own uses FP32's. Raises Refused if the bundle lacks the decision, and for pfa and
    threshold together.
    """
    if pfa is not None and threshold is not None:
        raise Refused("--pfa and --threshold exclude each other: give one of them")
    decision = decision or bundle.manifest.default_decision
    if decision not in bundle.manifest.decisions:
        known = ", ".join(bundle.manifest.decisions)
        raise Refused(f"--decision {decision!r:.80} is not in the bundle {bundle.path}: it has {known}")
    source = precision if precision in bundle.manifest.operating_points else "fp32"
    points = bundle.manifest.operating_points[source][decision]
    quantiles = bundle.manifest.benign_quantiles[source][decision]
    if threshold is not None:
        pfa = share_above(quantiles, threshold)
    else:
        pfa = DEFAULT_PFA if pfa is None else pfa
        threshold = _threshold_for(points, quantiles, pfa)
    nearest = min(points, key=lambda point: abs(point.pfa - pfa))
    exact = nearest if (nearest.pfa, nearest.threshold) == (pfa, threshold) else None
    return OperatingPoint(
        decision=decision,
        precision=source,
        pfa=pfa,
        threshold=threshold,
        class_thresholds=nearest.class_thresholds,
        interval=exact.interval if exact else None,
        supported=exact.supported if exact else _supported(points, pfa),
    )


def _threshold_for(points: Sequence[StoredPoint], quantiles: Quantiles, pfa: float) -> float:
    for point in points:
        if point.pfa == pfa:
            return point.threshold
    return float(np.interp(1 - pfa, quantiles.probability, quantiles.score))


def share_above(quantiles: Quantiles, threshold: float) -> float:
    """Return the share of benign images at or above a score, from the quantiles."""
    return 1 - float(np.interp(threshold, quantiles.score, quantiles.probability, left=0.0, right=1.0))


def _supported(points: Sequence[StoredPoint], pfa: float) -> bool:
    """Tell whether a probability is at least the smallest that calibration supports."""
    return any(point.supported and point.pfa <= pfa for point in points)


# --- writing ---


def write_bundle(path: Path | str, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to the new or empty folder `path` atomically, and return it as read back.

    `manifest` is the content of bundle.json without `format` and `files`, which are set here. Raises Refused
    if `path` is taken and BundleError if the bundle fails its own checks; then nothing is left behind.
    """
    path = Path(path)
    records = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
    }
    document = {"format": FORMAT, **manifest, "files": records}
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    check_vacant(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        temporary = Path(scratch) / path.name
        temporary.mkdir()
        for name, data in {**files, MANIFEST: text.encode()}.items():
            write_whole(temporary / name, data)
        Bundle.read(temporary)
        rename(temporary, path)
    return Bundle.read(path)


def check_vacant(path: Path) -> None:
    """Raise Refused unless `path` is new or an empty folder."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise Refused(f"{path} exists: a bundle is written to a new folder; remove this one or give another")
