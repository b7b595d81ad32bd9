"""bundle.json: the description of a model as typed, checked values."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from ..errors import BundleError
from ..model.architecture import HEADS, Architecture
from ..row import THREATS

FORMAT = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DECISIONS = ("gbad", "classes", "combined")
REQUIRED_FILES = ("weights.safetensors", "network.onnx", "bigan.onnx", "gate.tar", "README.md")
OPTIONAL_FILES = ("network_int8.xml", "network_int8.bin")  # of the INT8 network: both or neither
OPTIONAL_KEYS = ("tolerance_fp16", "tolerance_bf16", "tolerance_int8")
# largest relative difference of a loss in half precision, where a bundle states no tolerance of it: losses
# of the demo model move by 2 % at most, its scores by hundredths of a standard deviation
HALF_LOSS_REL = 0.05
LARGEST_FILES: dict[str, int] = {  # bytes
    **dict.fromkeys((*REQUIRED_FILES, *OPTIONAL_FILES), 1 << 30),
    "README.md": 1 << 20,
    "gate.tar": 1 << 28,
    "network_int8.xml": 1 << 26,
}
LARGEST_BUNDLE = 1 << 31  # bytes of all files
DEEPEST = 32  # objects and lists within each other
LATER_SIZES = ("head", "map_channels")  # of the architecture; bundles from before the class map lack them
# tensors inside network.onnx of a network with a class map: the map [N, 5, S/8, S/8], and what it is made of
CLASS_MAP = "class_map"
READ_MAPS = ("c3", "c4", "c5")
LONGEST_TEXT = 4096  # characters
MOST_POINTS = 64
MOST_QUANTILES = 100_001

T = TypeVar("T")


@dataclass(frozen=True)
class Preprocessing:
    """Constants of the normalization inside the graph, for pixels divided by 255."""

    mean: tuple[float, ...]  # [3], RGB
    std: tuple[float, ...]  # [3]


@dataclass(frozen=True)
class StoredPoint:
    """An operating point measured on calibration images."""

    pfa: float  # probability of false alarm that it was chosen for
    threshold: float  # on anomaly_score; an image at or above it is an alarm
    class_thresholds: tuple[float, ...]  # [5] on p_*, in the order of the classes
    interval: tuple[float, float]  # 95 %, of the probability of false alarm
    supported: bool  # enough benign calibration images are above the threshold


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of a score over benign calibration images, both ascending."""

    probability: tuple[float, ...]
    score: tuple[float, ...]


@dataclass(frozen=True)
class Tolerance:
    """The largest differences from FP32 that an engine may show on the gate images."""

    loss_rel: float  # largest relative difference of a loss
    score: float  # largest difference of a score, in standard deviations of benign scores
    flips: float  # largest share of flipped decisions at an operating point


@dataclass(frozen=True)
class Agreement:
    """What an engine in INT8 or bfloat16 must show on the gate images, whose losses differ by its noise."""

    decisions: float  # least share of decisions that are FP32's, at operating points of a PFA up to 5 %
    score: float  # largest root mean square difference of a score, in standard deviations of benign scores


@dataclass(frozen=True)
class FileRecord:
    """Hash and size of a file of the bundle."""

    sha256: str  # hex
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json; every value is checked, every number finite."""

    name: str
    created: str  # ISO 8601
    demo: bool  # trained on synthetic images
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    default_decision: str
    operating_points: Mapping[str, Mapping[str, tuple[StoredPoint, ...]]]  # [precision][decision], by pfa
    benign_quantiles: Mapping[str, Mapping[str, Quantiles]]  # [precision][decision]
    tolerance: Tolerance
    tolerance_fp16: Tolerance | None  # None if none was set
    tolerance_bf16: Agreement | None  # None if none was set
    tolerance_int8: Tolerance | Agreement | None  # None without an INT8 network, or if none was set
    benign_score_std: Mapping[str, float]  # [decision]
    provenance: Mapping[str, Any]  # free form: how, when and on what it was trained
    files: Mapping[str, FileRecord]

    @property
    def decisions(self) -> tuple[str, ...]:
        """Names of the decisions that the bundle holds."""
        return tuple(self.operating_points["fp32"])

    def tolerance_of(self, precision: str) -> Tolerance | Agreement:
        """Return the tolerance of an engine of this precision.

        Bundles that state none of FP16 bound its scores and decisions as FP32's, and its losses loosely.
        """
        if precision == "fp16":
            loosely = replace(self.tolerance, loss_rel=max(self.tolerance.loss_rel, HALF_LOSS_REL))
            return self.tolerance_fp16 or loosely
        stated = {"bf16": self.tolerance_bf16, "int8": self.tolerance_int8}
        return stated.get(precision) or self.tolerance

    def document(self) -> dict[str, Any]:
        """Return the content of bundle.json without `format` and `files`, as `write_bundle` takes it."""
        content = asdict(self)
        del content["files"]
        return {
            name: value for name, value in content.items() if name not in OPTIONAL_KEYS or value is not None
        }


def parse_manifest(data: bytes) -> Manifest:
    """Read the bytes of bundle.json; raises BundleError with the first invalid value."""
    try:
        value = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_raise_not_finite)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle.json is not JSON ({error})") from None
    if _is_deeper(value, DEEPEST):
        raise BundleError(f"bundle.json holds more than {DEEPEST} objects and lists within each other")
    root = _Value(value, "")
    version = root.value.get("format") if isinstance(root.value, dict) else None
    if version != FORMAT or isinstance(version, bool):
        raise BundleError(f"bundle.json has format {version!r:.40} but this version reads format {FORMAT}")
    return _manifest(root)


def _manifest(root: "_Value") -> Manifest:
    keys = ("format", *Manifest.__dataclass_fields__)
    at = root.fields(*keys, optional=OPTIONAL_KEYS)
    points = at["operating_points"].mapping(PRECISIONS, lambda v: v.mapping(DECISIONS, _points))
    quantiles = at["benign_quantiles"].mapping(PRECISIONS, lambda v: v.mapping(DECISIONS, _quantiles))
    spreads = at["benign_score_std"].mapping(DECISIONS, lambda v: v.number(1e-12))
    manifest = Manifest(
        name=at["name"].text(),
        created=at["created"].text(),
        demo=at["demo"].flag(),
        architecture=_architecture(at["architecture"]),
        preprocessing=_preprocessing(at["preprocessing"]),
        classes=at["classes"].texts(len(THREATS)),
        default_decision=at["default_decision"].text(),
        operating_points=points,
        benign_quantiles=quantiles,
        tolerance=_tolerance(at["tolerance"]),
        tolerance_fp16=_tolerance(at["tolerance_fp16"], 1e6) if "tolerance_fp16" in at else None,
        tolerance_bf16=_agreement(at["tolerance_bf16"]) if "tolerance_bf16" in at else None,
        tolerance_int8=_tolerance_int8(at["tolerance_int8"]) if "tolerance_int8" in at else None,
        benign_score_std=spreads,
        provenance=at["provenance"].object(),
        files=_files(at["files"]),
    )
    _check_together(manifest)
    return manifest


def _check_together(manifest: Manifest) -> None:
    """Check that all values agree on classes, decisions and precisions."""
    if manifest.classes != THREATS:
        raise BundleError(
            f"bundle.json: classes are {manifest.classes!r:.200} and must be {', '.join(THREATS)}"
        )
    wanted = manifest.operating_points.get("fp32", {}).keys()
    if not wanted or any(points.keys() != wanted for points in manifest.operating_points.values()):
        raise BundleError("bundle.json: operating_points lack fp32, or its decisions differ by precision")
    if manifest.benign_quantiles.keys() != manifest.operating_points.keys() or any(
        quantiles.keys() != wanted for quantiles in manifest.benign_quantiles.values()
    ):
        raise BundleError("bundle.json: benign_quantiles and operating_points name different decisions")
    if manifest.benign_score_std.keys() != wanted:
        raise BundleError("bundle.json: benign_score_std and operating_points name different decisions")
    if manifest.default_decision not in wanted:
        raise BundleError(
            f"bundle.json: default_decision {manifest.default_decision!r:.80} has no operating point"
        )
    int8 = [name for name in OPTIONAL_FILES if name in manifest.files]
    if len(int8) == 1:
        raise BundleError(f"bundle.json: files name {int8[0]} without the other file of the INT8 network")


def _architecture(value: "_Value") -> Architecture:
    at = value.fields(*Architecture.__dataclass_fields__, optional=LATER_SIZES)
    backbone = at.pop("backbone")
    if not re.fullmatch(r"[a-z0-9_]{1,100}", backbone.text()):
        raise backbone.error("the plain name of a registered backbone (a-z, 0-9 and _)")
    head = at.pop("head", None)
    if head is not None and head.text() not in HEADS:
        raise head.error(f"one of {', '.join(HEADS)}")
    input_size = at.pop("input_size").whole(32, 2048)
    given: dict[str, Any] = {name: size.whole(1, 1 << 16) for name, size in at.items()}
    if head is not None:
        given["head"] = head.text()
    return Architecture(backbone.text(), input_size=input_size, **given)


def _preprocessing(value: "_Value") -> Preprocessing:
    at = value.fields("mean", "std")
    return Preprocessing(at["mean"].numbers(3, 3, -10, 10), at["std"].numbers(3, 3, 1e-6, 10))


def _points(value: "_Value") -> tuple[StoredPoint, ...]:
    points = tuple(_point(item) for item in value.items(1, MOST_POINTS))
    return tuple(sorted(points, key=lambda point: point.pfa))


def _point(value: "_Value") -> StoredPoint:
    at = value.fields(*StoredPoint.__dataclass_fields__)
    low, high = at["interval"].numbers(2, 2, 0, 1)
    return StoredPoint(
        pfa=at["pfa"].number(1e-9, 1 - 1e-9),
        threshold=at["threshold"].number(),
        class_thresholds=at["class_thresholds"].numbers(len(THREATS), len(THREATS), 0, 1),
        interval=(low, high),
        supported=at["supported"].flag(),
    )


def _quantiles(value: "_Value") -> Quantiles:
    at = value.fields("probability", "score")
    probability = at["probability"].numbers(2, MOST_QUANTILES, 0, 1)
    score = at["score"].numbers(len(probability), len(probability))
    if any(b <= a for a, b in pairwise(probability)):
        raise at["probability"].error("strictly ascending")
    if any(b < a for a, b in pairwise(score)):
        raise at["score"].error("ascending")
    return Quantiles(probability, score)


def _tolerance(value: "_Value", largest: float = 1.0) -> Tolerance:
    at = value.fields("loss_rel", "score", "flips")
    return Tolerance(
        at["loss_rel"].number(0, largest), at["score"].number(0, largest), at["flips"].number(0, 1)
    )


def _tolerance_int8(value: "_Value") -> Tolerance | Agreement:
    if "decisions" not in value.object():  # bundles from before state it as for other engines
        return _tolerance(value, 1e6)
    return _agreement(value)


def _agreement(value: "_Value") -> Agreement:
    at = value.fields("decisions", "score")
    return Agreement(at["decisions"].number(0, 1), at["score"].number(0, 1e6))


def _files(value: "_Value") -> dict[str, FileRecord]:
    members = value.object()
    for name in members.keys() - {*REQUIRED_FILES, *OPTIONAL_FILES}:
        raise BundleError(f"bundle.json: files name {name!r:.80}, which is not a file of a bundle")
    for name in REQUIRED_FILES:
        if name not in members:
            raise BundleError(f"bundle.json: files lack {name}")
    files = {name: _file(_Value(members[name], f"files.{name}"), LARGEST_FILES[name]) for name in members}
    total = sum(file.bytes for file in files.values())
    if total > LARGEST_BUNDLE:
        raise BundleError(f"bundle.json: files have {total} bytes, above the limit of {LARGEST_BUNDLE}")
    return files


def _file(value: "_Value", most: int) -> FileRecord:
    at = value.fields("sha256", "bytes")
    if not re.fullmatch(r"[0-9a-f]{64}", at["sha256"].text()):
        raise at["sha256"].error("64 hexadecimal digits")
    return FileRecord(at["sha256"].text(), at["bytes"].whole(0, most))


@dataclass(frozen=True)
class _Value:
    """A value of the JSON document and its path; each method checks it and returns it typed."""

    value: Any
    where: str

    def error(self, wanted: str) -> BundleError:
        return BundleError(
            f"bundle.json: {self.where or 'the document'} is {self.value!r:.60} and must be {wanted}"
        )

    def object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return self.value

    def fields(self, *names: str, optional: tuple[str, ...] = ()) -> dict[str, "_Value"]:
        """Return the members by name: all but the optional ones are required, no other is allowed."""
        members = self.object()
        for name in members.keys() - set(names):
            raise BundleError(f"bundle.json: {self._member(name)!r:.120} is an unknown key")
        for name in names:
            if name not in members and name not in optional:
                raise BundleError(f"bundle.json: {self._member(name)} is missing")
        return {name: _Value(members[name], self._member(name)) for name in names if name in members}

    def mapping(self, allowed: tuple[str, ...], read: Callable[["_Value"], T]) -> dict[str, T]:
        """Return the members, each parsed by `read`, whose names are in a known set."""
        members = self.object()
        for name in members.keys() - set(allowed):
            raise BundleError(
                f"bundle.json: {self._member(name)!r:.120} is unknown; known are {', '.join(allowed)}"
            )
        return {name: read(_Value(members[name], self._member(name))) for name in members}

    def items(self, fewest: int, most: int) -> list["_Value"]:
        if not isinstance(self.value, list) or not fewest <= len(self.value) <= most:
            raise self.error(
                f"a list of {fewest} to {most} values" if fewest < most else f"a list of {most} values"
            )
        return [_Value(item, f"{self.where}[{i}]") for i, item in enumerate(self.value)]

    def numbers(self, fewest: int, most: int, low: float = -1e30, high: float = 1e30) -> tuple[float, ...]:
        return tuple(item.number(low, high) for item in self.items(fewest, most))

    def texts(self, count: int) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items(count, count))

    def number(self, low: float = -1e30, high: float = 1e30) -> float:
        number = self.value
        if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
            raise self.error(f"a number from {low:g} to {high:g}")
        assert math.isfinite(number)
        return float(number)

    def whole(self, low: int, high: int) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            raise self.error(f"a whole number from {low} to {high}")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not 0 < len(self.value) <= LONGEST_TEXT:
            raise self.error(f"text of 1 to {LONGEST_TEXT} characters")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error("true or false")
        return self.value

    def _member(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def _is_deeper(value: Any, levels: int) -> bool:
    """Tell whether more objects and lists stand within each other."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject an object with a duplicate key: parsers differ in which value they use."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return members


def _raise_not_finite(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")
