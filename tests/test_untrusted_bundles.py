"""What a hostile bundle can cost: files are bounded, each is checked before the next is read."""

import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import simplejpeg
import tiny_bundle as tiny
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load
from tar_blocks import header, pax

from gbad_batch.engine import bundle as bundle_module
from gbad_batch.engine.bundle import Bundle, pack_gate, unpack_gate, write_bundle
from gbad_batch.engine.bundle import manifest as manifest_module
from gbad_batch.engine.errors import BundleError
from gbad_batch.engine.model.decision import Decision
from gbad_batch.export import engine_for, to_openvino
from gbad_batch.export import gate as gate_module

MIB = 1 << 20


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Copy a bundle, to damage it."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "bundle.json").read_text())
    change(document)
    (folder / "bundle.json").write_text(json.dumps(document))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and what bundle.json records of it, as a forger would."""
    (folder / name).write_bytes(data)
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda document: document["files"].update({name: record}))


# --- gate.tar ---


END = bytes(1024)
HOSTILE_GATES = {
    "400 long names": (header(b"n", b"L", b"2") + b"a\0".ljust(512, b"\0")) * 400 + END,
    "a size of 2^87": header(b"a.jpg", b"0", b"\x80" + b"\x80" + bytes(10)) + END,
    "a size below zero": header(b"a.jpg", b"0", b"\xff" * 12) + END,
    "many digits": pax(b"9" * 100_000) + header(b"a.jpg", b"0", b"0") + END,
    "digits in a record": pax(b"100016 size=" + b"9" * 100_003 + b"\n") + header(b"a.jpg", b"0", b"0") + END,
    "a sparse member": header(b"a.jpg", b"S", b"0") + END,
    "a time of many digits": pax(b"50009 mtime=" + b"9" * 49_996 + b"\n")
    + header(b"a.jpg", b"0", b"0")
    + END,
    "a bad record": pax(b"99 path=x\n") + header(b"a.jpg", b"0", b"0") + END,
    "links": header(b"a.jpg", b"1", b"0") + END,
    "an unknown type": header(b"b/a.jpg", b"Z", b"0") + END,
    "no end": header(b"a.jpg", b"0", b"0"),
}


@pytest.mark.parametrize("name", HOSTILE_GATES)
def test_a_hostile_gate_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(BundleError) as caught:
        unpack_gate(HOSTILE_GATES[name])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_headers_of_a_gate_are_read_in_linear_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in bytes of the tar that are looked at: each once, however long its records are."""
    seen = 0

    class Counting(bundle_module.PlainStream):
        def read(self, size: int) -> bytes:
            nonlocal seen
            data = super().read(size)
            seen += len(data)
            return data

    monkeypatch.setattr(bundle_module, "PlainStream", Counting)
    for digits in (100_000, 1_000_000):
        seen = 0
        with pytest.raises(BundleError):
            unpack_gate(pax(b"9" * digits) + header(b"a.jpg", b"0", b"0") + END)
        assert seen < digits + 4_096


# --- sizes ---


def test_files_are_bounded_one_by_one_and_together(copy: Path) -> None:
    for name, most in manifest_module.LARGEST_FILES.items():
        if name.startswith("network_int8"):
            continue
        kept = (copy / "bundle.json").read_text()
        edit(copy, lambda document: document["files"][name].update(bytes=most + 1))  # noqa: B023
        with pytest.raises(BundleError, match=rf"files\.{name}\.bytes"):
            Bundle.read(copy)
        (copy / "bundle.json").write_text(kept)
    for name in ("weights.safetensors", "network.onnx", "bigan.onnx"):
        edit(copy, lambda document: document["files"][name].update(bytes=1 << 30))  # noqa: B023
    with pytest.raises(BundleError, match=r"files have 3\d+ bytes, above the limit of 2147483648"):
        Bundle.read(copy)


PEAK = """
import resource, sys
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import BundleError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Bundle.read(sys.argv[1])
    print("read", end=" ")
except BundleError:
    print("refused", end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_a_bundle_of_large_files_is_refused_at_the_first(copy: Path) -> None:
    """Seven files of up to 2 GB together (of holes): no more than the first is in memory."""
    for name in ("network.onnx", "bigan.onnx", "weights.safetensors"):
        size = 500 * MIB
        with (copy / name).open("wb") as file:
            file.truncate(size)
        edit(copy, lambda document: document["files"][name].update(bytes=size))  # noqa: B023
    found = subprocess.run([sys.executable, "-c", PEAK, copy], capture_output=True, text=True, check=True)
    outcome, megabytes = found.stdout.split()
    assert outcome == "refused"
    assert int(megabytes) < 700


# --- numbers and names ---


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("provenance", {"a": deep(33)}),
        ("provenance", {"a": deep(700)}),
        ("name", deep(400)),
        ("classes", deep(900)),
        ("demo", 10**4_000),
        ("tolerance", {"loss_rel": 10**4_000, "score": 1, "flips": 1}),
        ("name", "\ud800"),
        ("created", "x" * 5_000),
        ("architecture", None),
        ("operating_points", {"fp32": {"gbad": {}}}),
        ("files", [1]),
    ],
)
def test_odd_values_of_the_manifest_are_refused_in_one_sentence(copy: Path, key: str, value: Any) -> None:
    edit(copy, lambda document: document.update({key: value}))
    if key == "name" and isinstance(value, str):
        assert Bundle.read(copy).manifest.name == value  # it is escaped where it is printed
        return
    with pytest.raises(BundleError) as caught:
        Bundle.read(copy)
    assert len(str(caught.value)) < 600


NO_JSON = [b'{"format": ' + b"9" * 5_000 + b"}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff"]


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_a_manifest_that_is_no_json_is_refused(copy: Path, text: bytes) -> None:
    (copy / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.read(copy)


def decision_arrays(name: str) -> dict[str, np.ndarray]:
    arrays = load(tiny.files()["weights.safetensors"])
    return {key: array for key, array in arrays.items() if key.startswith(f"decision.{name}.")}


ODD_ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "no dimension": lambda _: np.float32(1).reshape(()),  # pyright: ignore
    "empty": lambda _: np.empty(0, np.float32),
    "one more dimension": lambda a: a[None].astype(np.float32),
    "too long": lambda a: np.concatenate([a.reshape(-1), a.reshape(-1)]).astype(np.float32),
    "too large": lambda a: np.full_like(a, 1e300, np.float64),
}


@pytest.mark.parametrize("odd", ODD_ARRAYS)
def test_odd_arrays_of_a_decision_are_refused(odd: str) -> None:
    for name in ("gbad", "combined", "classes"):
        arrays = decision_arrays(name)
        for key in arrays:
            with pytest.raises(BundleError):
                Decision.from_tensors(name, {**arrays, key: ODD_ARRAYS[odd](arrays[key])})


def test_an_array_named_as_the_decision_itself_is_refused() -> None:
    arrays = decision_arrays("gbad")
    with pytest.raises(BundleError, match="unknown arrays"):
        Decision.from_tensors("gbad", {**arrays, "decision.gbad.name": np.float32(1)})  # pyright: ignore


def test_the_support_of_a_decision_is_bounded() -> None:
    arrays = decision_arrays("gbad")
    many = (1 << 17) + 1
    d = len(arrays["decision.gbad.mean"])
    arrays |= {
        "decision.gbad.support": np.zeros((many, d), np.float32),
        "decision.gbad.coefficients": np.zeros(many, np.float32),
        "decision.gbad.gamma": np.ones(1, np.float32),
        "decision.gbad.low": np.zeros(d, np.float32),
        "decision.gbad.high": np.ones(d, np.float32),
    }
    with pytest.raises(BundleError, match="support vectors"):
        Decision.from_tensors("gbad", arrays)


# --- graphs ---


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string(tiny.network())
    for node in model.graph.node:
        if list(node.output) == ["x"]:
            node.output[0] = "plain"
    change(model)
    return model.SerializeToString()


def constant(model: onnx.ModelProto, name: str, values: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))


def times_itself(model: onnx.ModelProto) -> None:
    """Multiply every image's features with every other's: a map of N x N."""
    constant(model, "line", np.array([1, -1], np.int64))
    constant(model, "none", np.array([0], np.float32))
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["plain"], ["across"], perm=[1, 0]),
            helper.make_node("MatMul", ["plain", "across"], ["each"]),
            helper.make_node("MatMul", ["each", "plain"], ["mixed"]),
            helper.make_node("Mul", ["mixed", "none"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["x"]),
        ]
    )


def doubled(model: onnx.ModelProto) -> None:
    """Join the features with themselves twenty-five times."""
    constant(model, "axes", np.array([1], np.int64))
    constant(model, "none", np.array([0], np.float32))
    name = "plain"
    for i in range(25):
        model.graph.node.append(helper.make_node("Concat", [name, name], [f"d{i}"], axis=1))
        name = f"d{i}"
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", [name, "axes"], ["sum"], keepdims=1),
            helper.make_node("Mul", ["sum", "none"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["x"]),
        ]
    )


def broadcast(model: onnx.ModelProto) -> None:
    """Add each image's features to each other's, by shapes [N, 1, 32] and [1, N, 32]."""
    constant(model, "first", np.array([0], np.int64))
    constant(model, "second", np.array([1], np.int64))
    model.graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["plain", "first"], ["rows"]),
            helper.make_node("Unsqueeze", ["plain", "second"], ["columns"]),
            helper.make_node("Add", ["rows", "columns"], ["all"]),
            helper.make_node("ReduceMean", ["all", "first"], ["x"], keepdims=0),
        ]
    )


def by_content(model: onnx.ModelProto) -> None:
    """Give a map a size that depends on the picture, and multiply it with itself."""
    constant(model, "axes", np.array([0, 1], np.int64))
    constant(model, "ends", np.array([-1], np.int64))
    constant(model, "start", np.array([0], np.int64))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["plain", "axes"], ["largest"], keepdims=0),
            helper.make_node("Cast", ["largest"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["whole", "ends"], ["end"]),
            helper.make_node("Slice", ["plain", "start", "end", "start"], ["some"]),
            helper.make_node("ReduceSum", ["some", "axes"], ["sum"], keepdims=0),
            helper.make_node("Add", ["plain", "sum"], ["x"]),
        ]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (times_itself, "grow faster than its batch"),
        (broadcast, "grow faster than its batch"),
        (doubled, "above the limit"),
        (by_content, "depends on what an image shows"),
    ],
)
def test_a_graph_that_multiplies_is_refused(
    copy: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], object], reason: str
) -> None:
    replace_file(copy, "network.onnx", changed(change))
    bundle = Bundle.read(copy)  # its operators are known: only the sizes tell
    with pytest.raises(BundleError, match=reason):
        engine_for(bundle, device="cpu", engine="openvino", precision="fp32", cache_dir=tmp_path)


def test_plain_graphs_are_taken() -> None:
    for network in (tiny.network(), tiny.network_that_fails(), tiny.network_without_numbers()):
        assert to_openvino.build(network, tiny.bigan())


# --- gate images ---


def with_gate(folder: Path, image: bytes) -> Bundle:
    gate = unpack_gate(tiny.files()["gate.tar"])
    values = gate.reconstruction_loss, gate.feature_matching_loss, gate.logits
    packed = pack_gate([image, *gate.images[1:]], *values)
    return write_bundle(folder, tiny.manifest(), {**tiny.files(), "gate.tar": packed})


def test_a_gate_image_is_not_decoded_before_its_size_is_known(tmp_path: Path) -> None:
    """One of 25 megapixels is refused by its header, without memory for its pixels."""
    bundle = with_gate(tmp_path / "b", simplejpeg.encode_jpeg(np.zeros((5_000, 5_000, 3), np.uint8)))
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"gate-0000\.jpg .* cannot be used: .*5000 x 5000"):
        next(gate_module._batches(bundle, 16))
    assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    tracemalloc.stop()
    small = with_gate(tmp_path / "s", simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(BundleError, match="has 8 x 8 pixels and must have 64 x 64"):
        next(gate_module._batches(small, 16))


def test_gate_images_have_a_time_limit(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MOST_SECONDS", -1)
    with pytest.raises(BundleError, match="take more than"):
        list(gate_module._batches(tiny_bundle, 16))
