"""Half precision without a GPU: its emulation, the tolerance that follows, and the way back to FP32."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
import torch
import torch_bundle
from safetensors.numpy import load, save

from gbad_batch import export
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.bundle.manifest import HALF_LOSS_REL, Tolerance
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.folding import fold_batch_norms
from gbad_batch.engine.model.half_precision import EmulatedHalfGBAD
from gbad_batch.engine.model.mixed_precision import MixedPrecisionGBAD
from gbad_batch.engine.training.packing.half import MARGIN, EmulatedHalfRunner, with_half_tolerance
from gbad_batch.export import engine_for
from gbad_batch.export.choice import Choice
from gbad_batch.export.gate import measure, pass_gate

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path.parent for path in ROOT.glob("engine/*/bundle.json"))
both = pytest.mark.parametrize(
    "architecture", [torch_bundle.ARCHITECTURE, torch_bundle.MAPPED], ids=["fc5", "map"]
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_bundle(folder, torch_bundle.manifest(), torch_bundle.files())


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())


@both
@torch.no_grad()
def test_the_emulation_errs_as_half_precision_does(architecture: Architecture) -> None:
    """Torch's own half kernels on the CPU are the reference; they too sum in float32."""
    pixels = torch.from_numpy(tiny.pictures(4, seed=21))
    exact = torch_bundle.model(architecture).maps(pixels)
    real = MixedPrecisionGBAD(torch_bundle.model(architecture), "fp16").trunk(pixels)
    emulated = EmulatedHalfGBAD(torch_bundle.model(architecture), folded=False).trunk(pixels)
    for wanted, half, found in zip(exact, real, emulated, strict=True):
        assert half.dtype == torch.float16
        assert torch.equal(found, found.half().float())  # nothing finer is left
        assert 0.5 * rms(half.float() - wanted) < rms(found - wanted) < 2 * rms(half.float() - wanted)


@both
@torch.no_grad()
def test_folded_batch_norms_compute_the_same(architecture: Architecture) -> None:
    backbone = torch_bundle.model(architecture).network.backbone
    images = torch.randn(2, 3, 64, 64)
    wanted = backbone(images)
    fold_batch_norms(backbone, 64)
    for found, reference in zip(backbone(images), wanted, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-4)
    norms = [each for each in backbone.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        values = torch.randn(1, norm.num_features, 3, 3)
        plain = torch.nn.functional.batch_norm(
            values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        torch.testing.assert_close(plain, values)


def test_a_bundle_states_what_half_precision_may_differ_by(bundle: Bundle, tmp_path: Path) -> None:
    made = with_half_tolerance(bundle)
    written = made.write(tmp_path / "half")
    stated, plain = written.manifest.tolerance_of("fp16"), written.manifest.tolerance
    assert stated == written.manifest.tolerance_fp16
    assert isinstance(stated, Tolerance)
    emulated = written.manifest.provenance["fp16"]
    for name in ("loss_rel", "score", "flips"):
        assert getattr(stated, name) == max(MARGIN * emulated[name], getattr(plain, name))
    assert emulated["loss_rel"] > 0
    for folded in (False, True):
        assert pass_gate(written, EmulatedHalfRunner(written, folded=folded)).loss_rel_max > 0


def test_a_bundle_that_half_precision_overflows_states_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch_bundle.model()
    norm = next(each for each in model.network.backbone.modules() if isinstance(each, torch.nn.BatchNorm2d))
    norm.weight.fill_(60_000.0)
    large = {"weights.safetensors": save(load(torch_bundle.files()["weights.safetensors"]) | model.arrays())}
    bundle = write_bundle(tmp_path / "large", torch_bundle.manifest(), {**torch_bundle.files(), **large})
    with caplog.at_level(logging.WARNING):
        made = with_half_tolerance(bundle)
    assert made.manifest.tolerance_fp16 is None
    assert "states no tolerance of FP16: torch" in caplog.text
    assert "not finite" in caplog.text


def test_a_bundle_that_states_none_bounds_scores_and_decisions(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest.tolerance_of("fp16") == replace(manifest.tolerance, loss_rel=HALF_LOSS_REL)
    assert "tolerance_fp16" not in manifest.document()


def test_auto_takes_fp32_where_fp16_does_not_pass(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is here, so OpenVINO stands where it would be; gate and cache are the real ones."""
    monkeypatch.setattr(export, "resolve", lambda *_: Choice("cpu", "openvino", "fp16"))
    monkeypatch.setattr(export, "precisions", lambda *_: ("fp16", "fp32"))
    document = bundle.manifest.document() | {"tolerance_fp16": {"loss_rel": 0, "score": 0, "flips": 0}}
    strict = write_bundle(tmp_path / "strict", document, bundle.files)
    engine = engine_for(strict, cache_dir=tmp_path / "cache")
    assert engine.precision == "fp32"
    assert engine.reason.startswith("fp32 is used, not the faster fp16: openvino")
    assert engine_for(strict, cache_dir=tmp_path / "cache") == engine  # the refusal is remembered
    passed = engine_for(bundle, cache_dir=tmp_path / "cache")
    assert passed.precision == "fp16"
    assert passed.reason == "fp16 is used: it is faster and passed the parity gate on this machine"


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("folded", [False, True])
def test_a_shipped_bundle_passes_its_gate_in_half_precision(path: Path, folded: bool) -> None:
    """With the margin that a GPU may need, whether the bundle states a tolerance or not."""
    bundle = Bundle.read(path)
    runner = EmulatedHalfRunner(bundle, folded=folded)
    tolerance, found = bundle.manifest.tolerance_of("fp16"), measure(bundle, runner)
    assert isinstance(tolerance, Tolerance)
    assert MARGIN * found.loss_rel_max <= tolerance.loss_rel
    assert MARGIN * max(found.score_max.values()) <= tolerance.score
    assert np.all(MARGIN * np.array([*found.flips.values()]) <= tolerance.flips)
