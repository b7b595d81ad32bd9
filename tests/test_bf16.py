"""The network in bfloat16: its operating points, and where `auto` uses it."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from click.testing import CliRunner
from PIL import Image

from gbad_batch import export
from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.bundle.manifest import Agreement
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import BundleError, Refused, Stopped
from gbad_batch.engine.results.schema import read_footer
from gbad_batch.engine.runtime import open_engine
from gbad_batch.engine.system import machine
from gbad_batch.engine.system.machine import multiplies_bfloat16
from gbad_batch.engine.training.packing import bfloat16
from gbad_batch.engine.training.packing.bfloat16 import with_bf16
from gbad_batch.engine.training.packing.reduced import least_on_gate
from gbad_batch.export import choice, engine_for

HERE = pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU has no instructions for bfloat16")


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16") / "benign"
    folder.mkdir()
    for number, picture in enumerate(tiny.pictures(40, seed=2)):
        Image.fromarray(picture).save(folder / f"bag-{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def bf16(tiny_bundle: Bundle, benign: Path) -> Bundle:
    """Make a bundle with operating points of bfloat16: by a CPU that has it, or as if it were FP32."""
    bundle = tiny_bundle
    if multiplies_bfloat16():
        return with_bf16(bundle, sorted(benign.iterdir())).write(benign.parent / "bf16")
    document = bundle.manifest.document()
    for key in ("operating_points", "benign_quantiles"):
        document[key] = {**document[key], "bf16": document[key]["fp32"]}
    return write_bundle(
        benign.parent / "bf16", document | {"tolerance_bf16": {"decisions": 0.9, "score": 1.0}}, bundle.files
    )


# --- making it ---


@HERE
def test_a_bundle_gets_operating_points_and_a_tolerance_and_no_file(bf16: Bundle) -> None:
    manifest = bf16.manifest
    assert bf16.has_bf16
    assert manifest.operating_points.keys() == manifest.benign_quantiles.keys() == {"fp32", "bf16"}
    assert isinstance(manifest.tolerance_of("bf16"), Agreement)
    assert bf16.files.keys() == tiny.files().keys()
    assert manifest.provenance["bf16"]["calibration"] == 40
    assert bf16.files["README.md"].decode().count("\n## BF16\n") == 1
    assert bf16.trunk("bf16") != bf16.trunk("fp32")
    pfas = {point.pfa for point in manifest.operating_points["fp32"]["gbad"]}
    assert {point.pfa for point in manifest.operating_points["bf16"]["gbad"]} == pfas


@HERE
def test_the_command_gives_a_bundle_operating_points_of_bfloat16(
    tiny_bundle: Bundle, benign: Path, tmp_path: Path
) -> None:
    words = ["quantize", str(tiny_bundle.path), "--precision", "bf16", "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, [*words, "--calibration", str(benign)])
    assert ran.exit_code == 0, ran.output
    assert "BF16 form; decides as FP32 on" in ran.stdout
    assert Bundle.read(tmp_path / "out").has_bf16


@pytest.mark.parametrize(
    ("precision", "option"), [("int8", "--images"), ("bf16", "--calibration")], ids=["int8", "bf16"]
)
def test_the_command_names_the_images_that_it_lacks(
    tiny_bundle: Bundle, tmp_path: Path, precision: str, option: str
) -> None:
    words = ["quantize", str(tiny_bundle.path), "--precision", precision, "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 2
    assert f"--precision {precision} needs {option} DIR" in ran.stderr


@HERE
def test_a_network_that_decides_otherwise_gets_none(tiny_bundle: Bundle, benign: Path) -> None:
    from gbad_batch.engine.bundle import pack_gate

    gate = tiny_bundle.gate()
    other = pack_gate(
        gate.images, gate.reconstruction_loss[::-1], gate.feature_matching_loss[::-1], gate.logits[::-1]
    )
    bundle = write_bundle(benign.parent / "other", tiny.manifest(), {**tiny.files(), "gate.tar": other})
    with pytest.raises(Stopped, match="in BF16 are those of FP32, fewer"):
        with_bf16(bundle, sorted(benign.iterdir()))


def test_a_gate_allows_what_chance_explains(bf16: Bundle) -> None:
    assert least_on_gate(bf16, 1) < 0.995  # one decision of few
    assert 0.988 <= least_on_gate(bf16, 256) <= 0.993
    assert 0.994 <= least_on_gate(bf16, 100_000) < 0.995


def test_a_cpu_without_it_says_so(tiny_bundle: Bundle, benign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: False)
    with pytest.raises(Refused, match="no instructions for bfloat16"):
        with_bf16(tiny_bundle, sorted(benign.iterdir()))


def test_a_forged_tolerance_is_refused(bf16: Bundle, tmp_path: Path) -> None:
    document = bf16.manifest.document() | {"tolerance_bf16": {"loss_rel": 1, "score": 1, "flips": 1}}
    with pytest.raises(BundleError, match=r"tolerance_bf16\.\w+' is an unknown key"):
        write_bundle(tmp_path / "forged", document, bf16.files)


# --- using it ---


@HERE
def test_a_scan_in_bfloat16_gives_rows_that_say_so(bf16: Bundle, benign: Path, tmp_path: Path) -> None:
    tables = {}
    for precision in ("fp32", "bf16", "auto"):
        out = tmp_path / f"{precision}.parquet"
        summary = Scan(ScanSettings((benign,), model=bf16.path, precision=precision, out=out)).run()
        tables[summary.precision, precision] = pq.read_table(out)
        footer = read_footer(out)
        assert footer is not None
        assert footer["fingerprint"]["precision"] == summary.precision
        assert not any("operating point is that of" in note for note in summary.notes)
    assert tables.keys() == {("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "auto")}
    scores = {key: table["anomaly_score"].to_numpy() for key, table in tables.items()}
    np.testing.assert_array_equal(scores["bf16", "bf16"], scores["bf16", "auto"])
    difference = np.abs(scores["bf16", "bf16"] - scores["fp32", "fp32"])
    assert 0 < difference.max() < 0.5 * scores["fp32", "fp32"].std()


@HERE
def test_auto_takes_fp32_where_the_gate_refuses(bf16: Bundle, tmp_path: Path) -> None:
    document = bf16.manifest.document() | {"tolerance_bf16": {"decisions": 1.0, "score": 0}}
    strict = write_bundle(tmp_path / "strict", document, bf16.files)
    engine = engine_for(strict, cache_dir=tmp_path / "cache")
    assert engine.precision == "fp32"
    assert engine.reason.startswith("fp32 is used, not the faster bf16: ")
    with pytest.raises(Refused, match="use --precision fp32"):
        engine_for(strict, precision="bf16", cache_dir=tmp_path / "cache")


def test_auto_passes_over_a_refused_int8_to_bfloat16(
    bf16: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_bundle: Bundle, chosen: choice.Choice, *_rest: object) -> object:
        from gbad_batch.export.gate import BeyondTolerance

        if chosen.precision == "int8":
            raise BeyondTolerance("it decides otherwise")
        return replace(plain, precision=chosen.precision)

    plain = engine_for(bf16, precision="fp32", cache_dir=tmp_path)
    monkeypatch.setattr(export, "precisions", lambda *_: ("int8", "bf16", "fp32"))
    monkeypatch.setattr(export, "_load_or_build", load)
    engine = engine_for(bf16, cache_dir=tmp_path)
    assert engine.precision == "bf16"
    assert engine.reason.startswith("bf16 is used: it is faster")
    assert engine.reason.endswith("; not the faster int8: it decides otherwise")


@pytest.mark.parametrize(
    ("limit", "flags", "has"),
    [
        (None, {"avx512_bf16"}, True),
        (None, {"avx512_vnni"}, False),
        ("AVX2", {"avx512_bf16"}, False),
        ("avx512_core_vnni", {"amx_bf16"}, False),
        ("AVX512_CORE_AMX", {"amx_bf16"}, True),
        ("ALL", {"avx512_bf16"}, True),
    ],
)
def test_a_limit_on_the_instructions_counts(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, flags: set[str], has: bool
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert multiplies_bfloat16() is has


def test_without_the_instructions_auto_takes_fp32_and_bf16_is_refused(
    bf16: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "multiplies_bfloat16", lambda: False)
    assert choice.resolve(bf16, "cpu", "auto", "auto").precision == "fp32"
    with pytest.raises(Refused, match=r"needs bfloat16 instructions .* use fp32"):
        choice.resolve(bf16, "cpu", "auto", "bf16")


def test_it_is_refused_where_it_cannot_be(
    bf16: Bundle, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "multiplies_bfloat16", lambda: True)
    assert choice.resolve(bf16, "cpu", "auto", "auto").precision == "bf16"
    with pytest.raises(Refused, match="gbad-batch quantize --precision bf16"):
        choice.resolve(tiny_bundle, "cpu", "auto", "bf16")
    with pytest.raises(Refused, match="runs on OpenVINO, not on inductor"):
        choice.resolve(bf16, "cpu", "inductor", "bf16")


@HERE
def test_scores_belong_to_the_image_alone(bf16: Bundle) -> None:
    tiny.check_scores_of_images_alone(engine_for(bf16, precision="bf16"))


@HERE
def test_losses_are_those_of_the_features(bf16: Bundle) -> None:
    from gbad_batch.engine.runtime.features import FeatureRunner

    with closing(open_engine(engine_for(bf16, precision="bf16"))) as runner:
        found = runner(tiny.pictures(16, seed=9))
    again = FeatureRunner(bf16, 1, 16)(found.x)
    for name in ("reconstruction_loss", "feature_matching_loss"):
        np.testing.assert_allclose(again[name], getattr(found, name), rtol=1e-5)
