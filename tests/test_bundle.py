"""Bundles: what is read is what was written, and whatever else lies there is refused with one sentence."""

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import simplejpeg
import tiny_bundle as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gbad_batch.engine.bundle import (
    Bundle,
    default_bundle_path,
    operating_point,
    pack_gate,
    unpack_gate,
    write_bundle,
)
from gbad_batch.engine.bundle.onnx_check import check_graph
from gbad_batch.engine.bundle.tensors import parse_tensors
from gbad_batch.engine.errors import BundleError, Refused
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.row import THREATS

PIXELS = {"pixels": (TensorProto.UINT8, (None, tiny.SIZE, tiny.SIZE, 3))}
RESULTS = {
    "x": (TensorProto.FLOAT, (None, tiny.FEATURES)),
    "logits": (TensorProto.FLOAT, (None, len(THREATS))),
}


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Copy a bundle, to damage it."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of bundle.json."""
    path = folder / "bundle.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and what bundle.json records of it, as a forger would."""
    (folder / name).write_bytes(data)
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda document: document["files"].update({name: record}))


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as caught:
        Bundle.read(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "--model" in message
    assert "\n" not in message
    assert len(message) < 600
    assert caught.value.exit_code == 2


# --- what is read ---


def test_a_bundle_is_read_as_it_was_written(tiny_bundle: Bundle) -> None:
    again = Bundle.read(tiny_bundle.path)
    assert again.hash == hashlib.sha256((tiny_bundle.path / "bundle.json").read_bytes()).hexdigest()
    assert again.network_onnx == tiny.network()
    assert again.bigan_onnx == tiny.bigan()
    assert again.manifest.name == "tiny"
    assert again.manifest.demo
    assert again.manifest.classes == THREATS
    assert again.manifest.architecture.input_size == tiny.SIZE
    assert again.manifest.decisions == ("classes", "combined", "gbad")
    assert not again.has_int8
    assert again.manifest == tiny_bundle.manifest
    for name, array in tiny.weights().items():
        assert again.tensors()[name].dtype == np.float16
        np.testing.assert_array_equal(again.tensors()[name], array)
        assert not again.tensors()[name].flags.writeable
    assert Decision.from_tensors("combined", again.tensors()).tensors().keys() <= again.tensors().keys()


def test_the_gate_is_read_as_it_was_packed(tiny_bundle: Bundle) -> None:
    gate = tiny_bundle.gate()
    assert gate.names[:2] == ("gate-0000.jpg", "gate-0001.jpg")
    assert len(gate.images) == tiny.GATE_IMAGES
    found = tiny.reference(np.stack([simplejpeg.decode_jpeg(image) for image in gate.images]))
    np.testing.assert_array_equal(gate.reconstruction_loss, found["reconstruction_loss"])
    np.testing.assert_array_equal(gate.feature_matching_loss, found["feature_matching_loss"])
    np.testing.assert_array_equal(gate.logits, found["logits"])
    assert (
        pack_gate(gate.images, gate.reconstruction_loss, gate.feature_matching_loss, gate.logits)
        == (tiny.files()["gate.tar"])
    )


def test_the_default_bundle_passes_its_own_checks() -> None:
    if not (default_bundle_path() / "bundle.json").exists():
        pytest.skip("no default bundle is here")
    bundle = Bundle.read(default_bundle_path())
    assert bundle.manifest.demo
    assert len(bundle.gate().names) >= 256
    assert sum(path.stat().st_size for path in default_bundle_path().iterdir()) <= 60_000_000


def test_a_link_to_a_bundle_is_followed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tiny_bundle.path)
    assert Bundle.read(tmp_path / "latest").hash == tiny_bundle.hash


# --- files ---


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "does not exist")
    refused(tmp_path, "bundle.json is missing")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "cannot be opened as a folder")


@pytest.mark.parametrize("name", ["network.onnx", "weights.safetensors", "gate.tar", "README.md"])
def test_a_missing_changed_or_cut_file(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(copy, f"{name} has {len(whole) - 1} bytes")
    path.write_bytes(whole + b"x")
    refused(copy, f"{name} has {len(whole) + 1} bytes")
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    refused(copy, rf"{name} is not the file .* SHA-256 differs")
    path.unlink()
    refused(copy, f"{name} is missing")


@pytest.mark.parametrize("name", ["bundle.json", "network.onnx", "notes.txt"])
def test_links_are_refused_wherever_they_lead(copy: Path, name: str) -> None:
    elsewhere = copy.parent / "elsewhere"
    if (copy / name).exists():
        (copy / name).rename(elsewhere)
    (copy / name).symlink_to(elsewhere)
    refused(copy, "is a link")


def test_what_no_bundle_has_is_refused(copy: Path) -> None:
    (copy / "network.onnx.data").touch()
    refused(copy, "which is not a file of a bundle")


def test_a_pipe_in_place_of_a_file_does_not_hang(copy: Path) -> None:
    (copy / "README.md").unlink()
    os.mkfifo(copy / "README.md")
    refused(copy, "README.md is not a regular file")


def test_an_unreadable_file(copy: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (copy / "README.md").chmod(0)
    refused(copy, "cannot be read")


# --- bundle.json ---


def at(document: dict[str, Any], *path: str | int) -> Any:
    value: Any = document
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("format",), 2, "format 2 but this version reads format 1"),
        (("format",), True, "format True"),
        (("extra",), 1, "'extra' is an unknown key"),
        (("architecture", "depth"), 3, r"'architecture\.depth' is an unknown key"),
        (("architecture", "backbone"), "hf-hub:someone/net", r"architecture\.backbone .* plain name"),
        (("architecture", "backbone"), "../x", r"architecture\.backbone"),
        (("architecture", "backbone"), "RegNet", r"architecture\.backbone"),
        (("architecture", "input_size"), 1_000_000, r"architecture\.input_size is 1000000"),
        (("architecture", "input_size"), 128, r"network\.onnx has the inputs"),
        (("architecture", "features"), 64, r"network\.onnx has the outputs"),
        (("architecture", "latent"), 0, r"architecture\.latent"),
        (("preprocessing", "std"), [0.2, 0, 0.2], r"preprocessing\.std\[1\] is 0"),
        (("preprocessing", "mean"), [0.2], r"preprocessing\.mean is .* a list of 3"),
        (("classes",), ["gun"], "classes"),
        (("classes",), ["knife", "gun", "wrench", "pliers", "scissors"], "classes are"),
        (("default_decision",), "oracle", "default_decision 'oracle'"),
        (("demo",), 1, "demo is 1 and must be true or false"),
        (("name",), "", "name is ''"),
        (("name",), "x" * 5000, "name is"),
        (("created",), None, "created is None"),
        (("tolerance", "flips"), 2, r"tolerance\.flips is 2"),
        (("tolerance", "score"), 1e999, "not JSON|tolerance"),
        (("benign_score_std", "gbad"), 0, r"benign_score_std\.gbad is 0"),
        (("benign_score_std", "gbad"), "1", r"benign_score_std\.gbad"),
        (("operating_points", "fp32", "gbad", 0, "pfa"), 0, r"operating_points\.fp32\.gbad\[0\]\.pfa is 0"),
        (("operating_points", "fp32", "gbad"), [], "gbad"),
        (("operating_points", "fp32", "gbad", 1, "class_thresholds"), [2] * 5, r"class_thresholds\[0\] is 2"),
        (
            ("operating_points", "fp64"),
            {},
            r"'operating_points\.fp64' is unknown; known are fp32, fp16, bf16, int8",
        ),
        (("operating_points", "int8"), {}, "decisions differ by precision"),
        (("benign_quantiles", "fp32", "gbad", "score"), [2, 1], "score"),
        (
            ("benign_quantiles", "fp32", "gbad"),
            {"probability": [0, 0], "score": [1, 2]},
            "strictly ascending",
        ),
        (("benign_quantiles", "fp32", "gbad"), {"probability": [0, 1], "score": [2, 1]}, "must be ascending"),
        (("files", "evil.so"), {}, "'evil.so', which is not a file of a bundle"),
        (("files", "../x"), {}, "which is not a file of a bundle"),
        (("files", "network.onnx", "sha256"), "00", r"files\.network\.onnx\.sha256"),
        (("files", "network.onnx", "bytes"), 10**15, r"files\.network\.onnx\.bytes"),
        (("files", "network_int8.xml"), {"sha256": "0" * 64, "bytes": 1}, "without the other file"),
        (("provenance",), [], "provenance is"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    copy: Path, path: tuple[str | int, ...], value: Any, reason: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        at(document, *path[:-1])[path[-1]] = value

    edit(copy, change)
    refused(copy, reason)


@pytest.mark.parametrize(
    "path",
    [
        ("created",),
        ("tolerance", "flips"),
        ("files", "gate.tar"),
        ("operating_points", "fp32", "gbad", 0, "pfa"),
    ],
)
def test_a_missing_value_is_named(copy: Path, path: tuple[str | int, ...]) -> None:
    edit(copy, lambda document: at(document, *path[:-1]).pop(path[-1]))
    refused(copy, f"{path[-1]}")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1',
        b'{"format": 1, "format": 1}',
        b'{"format": NaN}',
        b'{"format": 1}',
        b"[" * 200_000,
        b'{"format": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_manifest_that_is_no_such_json(copy: Path, text: bytes) -> None:
    (copy / "bundle.json").write_bytes(text)
    refused(copy, r"bundle\.json")


def test_a_manifest_too_large_to_read(copy: Path) -> None:
    with (copy / "bundle.json").open("ab") as file:
        file.truncate(1 << 30)  # sparse: reading it would take a gigabyte
    refused(copy, "bundle.json has 1073741824 bytes")


def test_not_a_number_is_refused_everywhere(copy: Path) -> None:
    text = (copy / "bundle.json").read_text()
    (copy / "bundle.json").write_text(text.replace('"loss_rel": 0.01', '"loss_rel": NaN'))
    refused(copy, "NaN is not a finite number")


# --- weights ---


def tensor_file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (struct.pack("<Q", 1 << 62) + b"{}", "cut short"),
        (tensor_file(b"{]"), "not JSON"),
        (tensor_file(b"[]"), "not an object"),
        (
            tensor_file({"network.a": entry("F32", [1 << 30, 1 << 30], 0, 4)}, b"0000"),
            "does not match its size",
        ),
        (tensor_file({"network.a": entry("F32", [2], 0, 8)}, b"0000"), "does not start where"),
        (tensor_file({"network.a": entry("F32", [1], 4, 8)}, b"00000000"), "does not start where"),
        (tensor_file({"network.a": entry("F32", [1], 0, 4)}, b"00000000"), "belong to no tensor"),
        (
            tensor_file(
                {"network.a": entry("F32", [1], 0, 4), "network.b": entry("F32", [1], 0, 4)}, b"0000"
            ),
            "does not start where",
        ),
        (tensor_file({"network.a": entry("F32", [-1], 0, -4)}), "whole numbers"),
        (tensor_file({"network.a": entry("F32", [True], 0, 4)}, b"0000"), "whole numbers"),
        (tensor_file({"network.a": entry("F32", [1] * 9, 0, 4)}, b"0000"), "whole numbers"),
        (tensor_file({"network.a": entry("BF16", [2], 0, 4)}, b"0000"), "type 'BF16'"),
        (tensor_file({"optimizer.a": entry("F32", [1], 0, 4)}, b"0000"), "name that is not allowed"),
        (tensor_file({"network.a": {"dtype": "F32"}}), "not described"),
        (tensor_file({"network.a": entry("F32", [1], 0, 4)}, struct.pack("<f", np.nan)), "not finite"),
    ],
)
def test_weights_that_do_not_fit(data: bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        parse_tensors(data, "weights.safetensors")


def test_weights_without_the_standardization_or_a_decision(copy: Path) -> None:
    from safetensors.numpy import load, save

    tensors = load((copy / "weights.safetensors").read_bytes())
    fewer = {name: array for name, array in tensors.items() if name != "standardize.mean"}
    replace_file(copy, "weights.safetensors", save(fewer))
    refused(copy, "lacks standardize.mean")
    fewer = {name: array for name, array in tensors.items() if not name.startswith("decision.classes")}
    replace_file(copy, "weights.safetensors", save(fewer))
    refused(copy, "lacks the arrays of the decision 'classes'")
    tensors["standardize.std"][3] = 0
    replace_file(copy, "weights.safetensors", save(tensors))
    refused(copy, "standardize.std is not above 0")


# --- graphs ---


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string(tiny.network())
    change(model)
    return model.SerializeToString()


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def hidden_external(model: onnx.ModelProto) -> None:
    """External data named in a constant's attribute, without its flag."""
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def branch(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body))


def hidden_graph(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Relu", ["x"], ["d"], body=body))


def huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def wrong_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [7]


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(1 << 40)


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="own")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (external, "refers to numbers in another file"),
        (hidden_external, "refers to numbers in another file"),
        (branch, "holds the attribute field"),
        (hidden_graph, "holds the attribute field 6"),
        (
            lambda m: m.graph.node.append(helper.make_node("RandomNormal", [], ["r"], shape=[9])),
            "'RandomNormal'",
        ),
        (lambda m: m.graph.node.append(helper.make_node("Expand", ["x"], ["r"])), "operator 'Expand'"),
        (lambda m: m.graph.node.append(helper.make_node("Add", ["x"], ["r"], domain="own")), "'own.Add'"),
        (lambda m: m.opset_import.add(domain="com.microsoft", version=1), "operators of 'com.microsoft'"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "operator set 99"),
        (huge, "too large"),
        (wrong_size, "another size than its shape"),
        (sparse, "holds the graph field 15"),
        (function, "holds the model field 25"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING), "type 8"),
        (lambda m: setattr(m.graph.input[0], "name", "image"), "has the inputs"),
        (lambda m: m.graph.output.pop(), "has the outputs"),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT),
            "has the inputs",
        ),
        (lambda m: m.graph.input.append(m.graph.input[0]), "twice"),
        (lambda m: m.ClearField("graph"), "holds no graph"),
    ],
)
def test_a_graph_that_is_not_plain(change: Callable[[onnx.ModelProto], object], reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        check_graph(changed(change), "network.onnx", PIXELS, RESULTS)


def test_the_graph_check_accepts_numbers_in_every_plain_form() -> None:
    def listed(model: onnx.ModelProto) -> None:
        for kind, values in (
            (TensorProto.FLOAT, [1.0, 2.0]),
            (TensorProto.FLOAT16, [1.0, 2.0]),
            (TensorProto.INT64, [-1, 1 << 40]),
            (TensorProto.INT32, [-1, 300]),
            (TensorProto.DOUBLE, [1.0, 2.0]),
            (TensorProto.BOOL, [True, False]),
        ):
            tensor = helper.make_tensor(f"t{kind}", kind, [2], values)
            model.graph.initializer.append(tensor)

    check_graph(changed(listed), "network.onnx", PIXELS, RESULTS)


def test_a_graph_given_twice_is_refused() -> None:
    """Protobuf parsers merge a message that stands twice: what was checked alone may not hold together."""
    data = tiny.network()
    twin = onnx.ModelProto(graph=onnx.load_from_string(data).graph).SerializeToString()
    with pytest.raises(BundleError, match="model field graph twice"):
        check_graph(data + twin, "network.onnx", PIXELS, RESULTS)


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 20_000), place=st.integers(0, 20_000), bit=st.integers(0, 7))
def test_a_damaged_graph_is_refused_or_read_but_never_crashes(cut: int, place: int, bit: int) -> None:
    data = bytearray(tiny.network()[: len(tiny.network()) - cut % 200])
    data[place % len(data)] ^= 1 << bit
    with suppress(BundleError):
        check_graph(bytes(data), "network.onnx", PIXELS, RESULTS)


def test_a_forged_graph_is_refused_by_the_reader(copy: Path) -> None:
    replace_file(copy, "network.onnx", changed(external))
    refused(copy, "refers to numbers in another file")


# --- gate.tar ---


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


EXPECTED = {"names": ["a.jpg"], "reconstruction_loss": [1], "feature_matching_loss": [1], "logits": [[0] * 5]}


def with_expected(**changes: Any) -> bytes:
    return tar_of([(named("a.jpg"), b"x"), (named("expected.json"), json.dumps(EXPECTED | changes).encode())])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged or not a tar"),
        (b"no tar" * 1000, "damaged or not a tar"),
        (tiny.files()["gate.tar"][:5000], "damaged or not a tar|does not list|is missing"),
        (tar_of([(named("l.jpg", tarfile.SYMTYPE, "/etc/passwd"), b"")]), "not a regular file"),
        (tar_of([(named("l.jpg", tarfile.LNKTYPE, "/etc/passwd"), b"")]), "not a regular file"),
        (tar_of([(named("../up.jpg"), b"")]), "not a regular file"),
        (tar_of([(named("d", tarfile.DIRTYPE), b"")]), "not a regular file"),
        (tar_of([(named("f", tarfile.FIFOTYPE), b"")]), "not a regular file"),
        (tar_of([(named("a.jpg"), b"x"), (named("a.jpg"), b"y")]), "not a regular file with a unique"),
        (tar_of([(named("a.jpg"), b"x")]), "expected.json is missing"),
        (tar_of([(named("expected.json"), json.dumps(EXPECTED | {"names": []}).encode())]), "holds no image"),
        (with_expected(names=["b.jpg"]), "does not list"),
        (with_expected(logits=[[0] * 4]), "logits in expected.json is not 1 x 5"),
        (with_expected(reconstruction_loss=[float("nan")]), "finite"),
        (with_expected(reconstruction_loss=["x"]), "finite"),
        (with_expected(reconstruction_loss=[[1], 2]), "finite"),
    ],
)
def test_a_gate_that_does_not_fit(data: bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        unpack_gate(data)


def test_a_gate_must_say_what_each_image_gave() -> None:
    with pytest.raises(BundleError, match="reconstruction_loss"):
        pack_gate([b"x", b"y"], [1.0], [1.0, 2.0], np.zeros((2, 5)))


# --- writing ---


def test_a_bundle_that_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tolerance"):
        write_bundle(tmp_path / "new", tiny.manifest() | {"tolerance": {}}, tiny.files())
    with pytest.raises(ValueError, match="JSON compliant"):
        write_bundle(tmp_path / "new", tiny.manifest() | {"provenance": {"x": float("nan")}}, tiny.files())
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_never_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "work").touch()
    with pytest.raises(Refused, match="exists"):
        write_bundle(tmp_path / "taken", tiny.manifest(), tiny.files())
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "work"]
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", tiny.manifest(), tiny.files()).path == tmp_path / "empty"


def test_the_same_content_has_the_same_hash(tmp_path: Path, tiny_bundle: Bundle) -> None:
    again = write_bundle(tmp_path / "again", tiny.manifest(), dict(reversed(tiny.files().items())))
    assert again.hash == tiny_bundle.hash


# --- operating points ---


def test_a_stored_operating_point_is_taken_as_it_stands(tiny_bundle: Bundle) -> None:
    stored = tiny_bundle.manifest.operating_points["fp32"]["gbad"]
    default, asked = operating_point(tiny_bundle, "fp32"), operating_point(tiny_bundle, "fp32", pfa=0.25)
    assert (default.decision, default.pfa, default.threshold) == ("gbad", 0.05, stored[0].threshold)
    assert default.class_thresholds == stored[0].class_thresholds
    assert default.interval == stored[0].interval
    assert not default.supported
    assert asked.supported


@pytest.mark.parametrize("decision", ["gbad", "classes", "combined"])
@pytest.mark.parametrize("pfa", [0.01, 0.1, 0.3, 0.45, 0.99])
def test_any_pfa_alarms_on_that_share_of_benign_images(
    tiny_bundle: Bundle, decision: str, pfa: float
) -> None:
    point = operating_point(tiny_bundle, "fp32", decision, pfa=pfa)
    scores = np.array(tiny_bundle.manifest.benign_quantiles["fp32"][decision].score)
    assert abs(float((scores >= point.threshold).mean()) - pfa) <= 1 / len(scores)
    assert point.interval is None
    nearest = min((0.05, 0.25, 0.5), key=lambda stored: abs(stored - pfa))
    assert point.class_thresholds[4] == pytest.approx(0.6 - nearest / 10)
    assert point.supported == (pfa >= 0.25)


def test_a_threshold_is_taken_as_given_and_its_pfa_estimated(tiny_bundle: Bundle) -> None:
    scores = tiny_bundle.manifest.benign_quantiles["fp32"]["gbad"].score
    point = operating_point(tiny_bundle, "fp32", threshold=scores[12])
    assert point.threshold == scores[12]
    assert point.pfa == pytest.approx(11 / 23)
    assert operating_point(tiny_bundle, "fp32", threshold=1e9).pfa == 0
    assert operating_point(tiny_bundle, "fp32", threshold=-1e9).pfa == 1


def test_a_precision_without_points_of_its_own_uses_fp32s(tiny_bundle: Bundle) -> None:
    assert operating_point(tiny_bundle, "int8") == operating_point(tiny_bundle, "fp32")
    assert operating_point(tiny_bundle, "int8").precision == "fp32"


def test_what_no_operating_point_can_be_made_of(tiny_bundle: Bundle) -> None:
    with pytest.raises(Refused, match="it has classes, combined, gbad"):
        operating_point(tiny_bundle, "fp32", "oracle")
    with pytest.raises(Refused, match="exclude each other"):
        operating_point(tiny_bundle, "fp32", pfa=0.1, threshold=1.0)
