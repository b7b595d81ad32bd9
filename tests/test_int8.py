"""The INT8 form of a network: made, stored, read with suspicion, and used where it decides as FP32 does."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.bundle.ir_check import check_ir
from gbad_batch.engine.bundle.manifest import Agreement, Tolerance
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import BundleError, Refused, Stopped
from gbad_batch.engine.results.schema import read_footer
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.training.packing.quantizing import with_int8
from gbad_batch.engine.training.packing.reduced import map_quantiles
from gbad_batch.engine.training.settings import QuantizeSettings
from gbad_batch.export import engine_for
from gbad_batch.export.to_int8 import (
    DEPTHWISE,
    PARTS,
    PROJECTIONS,
    first_convolution,
    heads,
    joins,
    parts,
    prepared,
    quantize,
)

PIXELS = {"pixels": ("u8", (None, tiny.SIZE, tiny.SIZE, 3))}
RESULTS = {"x": ("f32", (None, tiny.FEATURES)), "logits": ("f32", (None, len(THREATS)))}


def written(folder: Path, count: int, seed: int) -> list[Path]:
    """Write pictures as files."""
    folder.mkdir()
    for number, picture in enumerate(tiny.pictures(count, seed)):
        Image.fromarray(picture).save(folder / f"bag-{number:03d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    written(folder / "training", 24, seed=1)
    written(folder / "benign", 40, seed=2)
    return folder


@pytest.fixture(scope="module")
def int8(tiny_bundle: Bundle, images: Path) -> Bundle:
    """Make a tiny bundle with an INT8 form and operating points of its own."""
    training, benign = (sorted((images / name).iterdir()) for name in ("training", "benign"))
    return with_int8(tiny_bundle, training, benign, QuantizeSettings()).write(images / "bundle")


# --- making it ---


def test_a_bundle_gets_an_int8_form_beside_all_that_it_has(tiny_bundle: Bundle, int8: Bundle) -> None:
    assert int8.has_int8
    for name in ("network.onnx", "bigan.onnx", "weights.safetensors", "gate.tar"):
        assert int8.files[name] == tiny_bundle.files[name]
    manifest, before = int8.manifest, tiny_bundle.manifest
    assert manifest.operating_points["fp32"] == before.operating_points["fp32"]
    assert manifest.benign_quantiles.keys() == {"fp32", "int8"}
    for decision, points in manifest.operating_points["int8"].items():
        assert [point.pfa for point in points] == [p.pfa for p in before.operating_points["fp32"][decision]]
    assert manifest.tolerance == before.tolerance
    assert isinstance(manifest.tolerance_int8, Agreement)
    assert manifest.tolerance_int8.decisions == pytest.approx(1 - 1 / tiny.GATE_IMAGES)
    assert 0 < manifest.tolerance_int8.score < 0.5
    made = manifest.provenance["int8"]
    assert (made["images"], made["calibration"]) == (24, 40)
    assert min(made["agreement"].values()) > 0.9
    assert made["in_fp32"] == []  # nothing had to be left out
    card = int8.files["README.md"].decode()
    assert "## INT8" in card
    assert "quantized on 24 images" in card


def test_convolutions_of_the_backbone_are_stored_in_int8(int8: Bundle) -> None:
    xml, constants = int8.network_int8
    text = xml.decode()
    assert (
        text.count('element_type="i8"') == 1
    )  # the body; the stem sees pixels, fc and fc5 follow the pooling
    assert f'element_type="i8" shape="{tiny.CHANNELS}, {tiny.CHANNELS}, 3, 3"' in text
    assert "rt_info" not in text
    assert len(constants) < 2 * sum(weight.size for weight in tiny.weights().values())


def test_the_same_images_give_the_same_bytes(
    tiny_bundle: Bundle, int8: Bundle, images: Path, tmp_path: Path
) -> None:
    training, benign = (sorted((images / name).iterdir()) for name in ("training", "benign"))
    again = with_int8(tiny_bundle, training, benign, QuantizeSettings()).write(tmp_path / "again")
    assert again.hash == int8.hash


def test_a_form_that_decides_otherwise_is_not_written(
    tiny_bundle: Bundle, images: Path, tmp_path: Path
) -> None:
    from gbad_batch.engine.bundle import pack_gate

    gate = tiny_bundle.gate()
    other = pack_gate(
        gate.images, gate.reconstruction_loss[::-1], gate.feature_matching_loss[::-1], gate.logits[::-1]
    )
    bundle = write_bundle(tmp_path / "other", tiny.manifest(), {**tiny.files(), "gate.tar": other})
    with pytest.raises(
        Stopped, match=r"of the decisions of '\w+' on .* images in INT8 are those of FP32, fewer"
    ):
        with_int8(bundle, sorted((images / "training").iterdir()), [], QuantizeSettings())
    words = ["quantize", str(bundle.path), "--images", str(images / "training")]
    assert CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")]).exit_code == 1
    assert not (tmp_path / "out").exists()


def test_thresholds_are_carried_over_so_that_as_many_images_lie_above() -> None:
    random = np.random.default_rng(0)
    plain = random.normal(size=500)
    own = 0.8 * plain + 0.1 * random.normal(size=500) - 1
    thresholds = np.quantile(plain, [0.5, 0.9, 0.95, 0.99])
    moved = map_quantiles(thresholds.tolist(), plain, own)
    assert [(own >= t).sum() for t in moved] == [(plain >= t).sum() for t in thresholds]
    np.testing.assert_array_equal(map_quantiles(thresholds.tolist(), plain, plain), thresholds)
    beyond = map_quantiles([plain.max() + 1, plain.min() - 1], plain, own)
    np.testing.assert_allclose(beyond, [own.max() + 1, own.min() - 1])


def test_the_command_gives_a_bundle_an_int8_form(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    words = ["quantize", str(tiny_bundle.path), "--images", str(images / "training"), "--count", "10"]
    ran = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    assert "quantized on 10 images" in ran.stdout
    bundle = Bundle.read(tmp_path / "out")
    assert bundle.manifest.operating_points.keys() == {"fp32"}
    assert "operating points of FP32" in bundle.files["README.md"].decode()
    again = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "exists" in again.stderr


SIGNALLED = """
import gc, os, signal, sys
import tiny_bundle as tiny
from gbad_batch.engine.bundle import Bundle
from gbad_batch.export.to_int8 import quantize

signal.signal(signal.SIGUSR1, lambda *_: None)
network = Bundle.read(sys.argv[1]).files["network.onnx"]
for seed in range(3):
    quantize(network, tiny.pictures(4, seed))
    os.kill(os.getpid(), signal.SIGUSR1)
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_do_no_harm_after_quantizing(tiny_bundle: Bundle) -> None:
    """NNCF opens and closes OpenVINO, whose plugin takes the stack that signals are handled on with it."""
    words = [sys.executable, "-c", SIGNALLED, str(tiny_bundle.path)]
    subprocess.run(words, check=True, cwd=Path(__file__).parent)


# --- the graph ---


def network_of(backbone: str, size: int) -> bytes:
    torch = pytest.importorskip("torch")
    from gbad_batch.engine.model.architecture import Architecture
    from gbad_batch.engine.model.gbad import GBAD
    from gbad_batch.export.to_onnx import export_graphs

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"fpn_channels": 16, "head_features": 8, "features": 32, "latent": 4, "f_d": 8}
    model = GBAD(Architecture(backbone=backbone, input_size=size, **sizes)).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.1, 4)  # type: ignore[union-attr]
            module.weight.uniform_(0.1, 3)  # type: ignore[operator]
    return export_graphs(model)[0]


@pytest.mark.slow
def test_all_behind_the_last_pooling_stays_fp32() -> None:
    """Of the pyramid that pools first, all of it; of the plain one, the means over its maps and the heads."""
    collapsed, plain = (prepared(network_of("test_resnet", size)) for size in (64, 80))
    kinds = [kinds_of(model, heads(model)) for model in (collapsed, plain)]
    assert (kinds[0]["AvgPool"], kinds[0]["Convolution"]) == (4, 4 + 4 + 4 + 1)
    assert (kinds[1]["ReduceMean"], kinds[1]["Convolution"]) == (4, 4 + 1)
    for model in (collapsed, plain):
        assert first_convolution(model) not in heads(model)
        residual = [name for name in joins(model) if name not in heads(model)]
        assert kinds_of(model, residual) == {"Add": 4 if model is collapsed else 4 + 3}


@pytest.mark.slow
def test_depthwise_convolutions_and_projections_can_stay_fp32() -> None:
    network = network_of("tf_efficientnet_lite0", 64)
    model = prepared(network)
    found = parts(model)
    assert kinds_of(model, found[DEPTHWISE]) == {"GroupConvolution": 16}  # one of each block
    assert kinds_of(model, found[PROJECTIONS])["Convolution"] >= 16
    whole, partly = (quantize(network, tiny.pictures(4), in_fp32=kept)[0].decode() for kept in ((), PARTS))  # pyright: ignore
    # of 49 convolutions the first is none: 15 expansions, 16 depthwise ones, 16 projections
    assert whole.count('element_type="i8"') == 15 + 16 + 16
    assert partly.count('element_type="i8"') == 15


def kinds_of(model: Any, names: list[str]) -> Counter[str]:
    named = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    return Counter(named[name].get_type_name() for name in names)


def test_a_network_without_a_pooling_is_refused() -> None:
    from onnx import TensorProto, helper

    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 8, 8])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["x"])], "flat", [pixels], [x])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(Stopped, match="no pooling"):
        heads(prepared(model.SerializeToString()))


# --- a file from a stranger ---


def changed(int8: Bundle, old: str, new: str, count: int = 1) -> bytes:
    text = int8.network_int8[0].decode()
    assert old in text
    return text.replace(old, new, count).encode()


CONST = '<data element_type="i8"'


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<net ", "<!DOCTYPE net><net ", "a document type"),
        ("<net ", '<!DOCTYPE net [<!ENTITY a "b">]><net ', "a document type"),
        ("<net ", "<!-- x --><net ", "a comment"),
        ("<net ", "<?php x?><net ", "a processing instruction"),
        ("<layers>", "<layers><![CDATA[x]]>", "a CDATA section"),
        ("<layers>", "<layers>x", "text in the element 'layers'"),
        ("</net>", "", "is not XML"),
        ("</net>", "<rt_info /></net>", "the element 'rt_info' in 'net'"),
        ("</net>", "<layers /></net>", "the element 'layers' twice"),
        ('version="11"', 'version="12"', "has the version '12'"),
        ('type="ReLU"', 'type="Loop"', r"the operator 'opset\d+.Loop'"),
        ('type="ReLU" version="opset1"', 'type="ReLU" version="extension"', "the operator 'extension.ReLU'"),
        ('id="3"', 'id="2"', "numbers a layer 2"),
        ("<input>", "<input><body/>", "the element 'body' in 'input'"),
        ("<input>", '<input path="/etc/passwd">', "the attribute 'path' of 'input'"),
        (CONST, '<data element_type="string"', "of type 'string'"),
        (CONST, '<data element_type="f32"', "of another size than its shape"),
        (CONST, '<data file="/etc/passwd" element_type="i8"', "by element_type"),
        ('size="2304"', 'size="99999999999"', "of another size than its shape"),
        ('from-layer="0"', 'from-layer="7777"', "an edge from port 0 of layer 7777, which is not there"),
        ('from-port="0"', 'from-port="63"', "an edge from port 63"),
        ('to-layer="1"', 'to-layer="0"', "which leads backwards"),
        ('to-layer="1"', 'to-layer="1e3"', "'1e3' in place of a number"),
        ('element_type="u8"', 'element_type="f32"', "has the inputs"),
        (f'shape="?,{tiny.SIZE}', 'shape="?,4096', "has the inputs"),
        ('names="logits"', 'names="scores"', "has the outputs"),
        ('names="x"', 'names="' + "x" * 5000 + '"', "longer than 4096"),
        ("<dim>-1</dim>", "<dim>-7</dim>", "'-7' in place of a number"),
        ("<dim>-1</dim>", "<dim>-1</dim>" * 9, "more than 8 dimensions"),
    ],
)
def test_a_forged_graph_is_refused_with_its_reason(int8: Bundle, old: str, new: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as caught:
        check_ir(changed(int8, old, new), len(int8.network_int8[1]), "network_int8.xml", PIXELS, RESULTS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_constants_beyond_their_file_and_other_encodings_are_refused(int8: Bundle) -> None:
    xml, constants = int8.network_int8
    check_ir(xml, len(constants), "network_int8.xml", PIXELS, RESULTS)
    with pytest.raises(BundleError, match="beyond the"):
        check_ir(xml, len(constants) - 1, "network_int8.xml", PIXELS, RESULTS)
    for other in (
        xml.decode().encode("utf-16"),
        xml.replace(b"network", "n\u00e9t".encode()),
        b"\xef\xbb\xbf" + xml,
    ):
        with pytest.raises(BundleError, match="not ASCII text"):
            check_ir(other, len(constants), "network_int8.xml", PIXELS, RESULTS)
    for none in (b"", b"<", b"not XML", b"<net/>" * 2):
        with pytest.raises(BundleError, match=r"network_int8\.xml"):
            check_ir(none, len(constants), "network_int8.xml", PIXELS, RESULTS)


def test_a_forged_form_is_refused_by_the_reader(int8: Bundle, tmp_path: Path) -> None:
    files = {**int8.files, "network_int8.xml": changed(int8, 'type="ReLU"', 'type="If"')}
    with pytest.raises(BundleError, match="which is not on the list"):
        write_bundle(tmp_path / "forged", int8.manifest.document(), files)


# --- using it ---


def test_a_scan_in_int8_gives_rows_that_say_so(int8: Bundle, images: Path, tmp_path: Path) -> None:
    settings = ScanSettings(sources=(str(images / "benign"),), model=int8.path, threads=1)
    summary = Scan(replace(settings, precision="int8", out=tmp_path / "r.parquet")).run()
    assert (summary.ok, summary.precision) == (40, "int8")
    table = pq.read_table(tmp_path / "r.parquet")
    footer = read_footer(tmp_path / "r.parquet")
    assert footer is not None
    assert footer["fingerprint"]["precision"] == "int8"
    plain = list(Scan(replace(settings, precision="fp32")).rows())
    found = dict(zip(table["uri"].to_pylist(), table["anomaly_score"].to_pylist(), strict=True))
    spread = int8.manifest.benign_score_std["gbad"]
    differences = [abs(found[row.uri] - row.anomaly_score) for row in plain if row.anomaly_score is not None]
    assert len(differences) == 40
    assert 0 < max(differences) < 0.5 * spread


def test_auto_takes_int8_where_the_gate_passes_and_says_why(
    int8: Bundle, images: Path, tmp_path: Path
) -> None:
    settings = ScanSettings(
        sources=(str(images / "benign"),), model=int8.path, threads=1, out=tmp_path / "r.parquet"
    )
    summary = Scan(settings).run()
    assert summary.precision == "int8"
    assert any("int8 is used" in note for note in summary.notes)
    assert not any("operating point is that of" in note for note in summary.notes)


@pytest.fixture
def strict(int8: Bundle, tmp_path: Path) -> Bundle:
    """Make a bundle whose INT8 form passes no gate."""
    document = int8.manifest.document()
    document["tolerance_int8"] = {"decisions": 1.0, "score": 0}
    return write_bundle(tmp_path / "strict", document, int8.files)


def test_auto_takes_fp32_where_the_gate_refuses_and_remembers_it(strict: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    engine = engine_for(strict, cache_dir=cache)
    assert engine.precision == "fp32"
    assert "fp32 is used" in engine.reason
    assert "the root mean square difference of a score in standard deviations is" in engine.reason
    kept = {path: path.stat().st_ino for path in cache.iterdir()}
    assert len(kept) == 2
    refused = min(kept, key=lambda path: path.stat().st_size)
    assert refused.read_bytes().endswith(b"}\n")  # the finding alone, no engine
    assert engine_for(strict, cache_dir=cache) == engine
    assert {path: path.stat().st_ino for path in cache.iterdir()} == kept  # nothing was tried again
    with pytest.raises(Refused, match="use --precision fp32"):
        engine_for(strict, precision="int8", cache_dir=cache)
    assert engine_for(strict, precision="fp32", cache_dir=cache).reason == ""


def test_a_form_that_decides_otherwise_here_is_refused_in_figures(int8: Bundle, tmp_path: Path) -> None:
    document = int8.manifest.document()
    document["tolerance_int8"] = {"decisions": 1.0, "score": 1.0}
    points = document["operating_points"]["int8"]["gbad"]
    document["operating_points"]["int8"]["gbad"] = [point | {"threshold": -1e9} for point in points]
    bundle = write_bundle(tmp_path / "alarming", document, int8.files)
    with pytest.raises(
        Refused, match=r"\d\.\d\d% of the decisions of 'gbad' are those of FP32, fewer than 100"
    ):
        engine_for(bundle, precision="int8", cache_dir=tmp_path / "cache")


def test_a_bundle_from_before_states_its_tolerance_as_other_engines_do(int8: Bundle, tmp_path: Path) -> None:
    document = int8.manifest.document()
    document["tolerance_int8"] = {"loss_rel": 9.0, "score": 9.0, "flips": 0.5}
    bundle = write_bundle(tmp_path / "before", document, int8.files)
    assert bundle.manifest.tolerance_of("int8") == Tolerance(9.0, 9.0, 0.5)
    assert engine_for(bundle, precision="int8", cache_dir=tmp_path / "cache").parity is not None
    document["tolerance_int8"]["loss_rel"] = 0
    bundle = write_bundle(tmp_path / "stricter", document, int8.files)
    with pytest.raises(Refused, match="the relative difference of a loss"):
        engine_for(bundle, precision="int8", cache_dir=tmp_path / "cache")


def test_a_bundle_without_a_tolerance_of_int8_uses_that_of_fp32(int8: Bundle, tmp_path: Path) -> None:
    document = int8.manifest.document()
    del document["tolerance_int8"]
    bundle = write_bundle(tmp_path / "bundle", document, int8.files)
    assert bundle.manifest.tolerance_of("int8") == bundle.manifest.tolerance
    assert json.loads(json.dumps(bundle.manifest.document())) == json.loads(json.dumps(document))


def test_int8_is_refused_where_it_cannot_be(int8: Bundle, tiny_bundle: Bundle) -> None:
    with pytest.raises(Refused, match="gbad-batch quantize"):
        engine_for(tiny_bundle, precision="int8")
    with pytest.raises(Refused, match="runs on OpenVINO"):
        engine_for(int8, engine="inductor", precision="int8")


def test_int8_scores_belong_to_the_image_alone(int8: Bundle) -> None:
    tiny.check_scores_of_images_alone(engine_for(int8, precision="int8"))
