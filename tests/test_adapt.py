"""A bundle is adapted to bags without labels: what changes, what stays, kills, threats among the bags."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
import torch_bundle
from click.testing import CliRunner
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.adaptation.benign import divide, outlying
from gbad_batch.engine.adaptation.run import AdaptSettings, adapt
from gbad_batch.engine.bundle import Bundle, operating_point, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.evaluation.rows import decision_scores, read_results
from gbad_batch.engine.model.calibration import threshold_at
from gbad_batch.engine.model.decision import INPUTS
from gbad_batch.engine.settings import Precision
from gbad_batch.engine.training.packing import reduced
from gbad_batch.engine.training.packing.quantizing import with_int8
from gbad_batch.engine.training.phases import phase2
from gbad_batch.engine.training.settings import Phase2Settings, QuantizeSettings

BAGS = 200


@pytest.fixture(scope="module", autouse=True)
def lenient() -> Iterator[None]:
    """Ask less of INT8 than it must keep: in random weights its noise is large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduced, "AGREEMENT", 0.9)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures as bags of a site, one of them twice, beside a file that is no image."""
    folder = tmp_path_factory.mktemp("adapt")
    (folder / "bags").mkdir()
    for number, picture in enumerate(tiny.pictures(BAGS, seed=2)):
        Image.fromarray(picture).save(folder / "bags" / f"bag-{number:03d}.png")
    shutil.copy(folder / "bags" / "bag-000.png", folder / "bags" / "copy.png")
    (folder / "bags" / "broken.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def former(folder: Path) -> Bundle:
    """Make a bundle with an INT8 form."""
    plain = write_bundle(folder / "fp32", torch_bundle.manifest(), torch_bundle.files())
    bags = sorted((folder / "bags").glob("bag-*"))
    return with_int8(plain, bags[:24], bags, QuantizeSettings()).write(folder / "former")


@pytest.fixture(scope="module")
def settings(folder: Path, former: Bundle) -> AdaptSettings:
    return AdaptSettings(
        former.path, (str(folder / "bags"),), folder / "site", folder / "site.run", "site", threads=1
    )


@pytest.fixture(scope="module")
def adapted(settings: AdaptSettings) -> Bundle:
    words = ["adapt", str(settings.bundle), "--benign", *settings.benign, "--out", str(settings.out)]
    done = CliRunner().invoke(main, [*words, "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"scan with --model {settings.out}" in done.output
    return Bundle.read(settings.out)


def test_the_network_stays_and_the_rest_is_the_sites(former: Bundle, adapted: Bundle):
    for name in ("network.onnx", "network_int8.xml", "network_int8.bin"):
        assert adapted.files[name] == former.files[name]
    before, after = former.tensors(), adapted.tensors()
    assert {name for name in after if name not in before} == set(adapted.typicality().tensors())  # pyright: ignore
    for name in before:
        if name.startswith("network."):
            np.testing.assert_array_equal(before[name], after[name])
    assert not np.allclose(before["bigan.encoder.0.weight"], after["bigan.encoder.0.weight"])
    for name, inputs in INPUTS.items():
        for field in ("weights", "intercept"):
            key = f"decision.{name}.{field}"
            np.testing.assert_array_equal(before[key], after[key])
        changed = before[f"decision.{name}.mean"] != after[f"decision.{name}.mean"]
        assert changed.tolist() == ["loss" in each for each in inputs]
    manifest = adapted.manifest
    assert (manifest.name, manifest.demo) == ("site", former.manifest.demo)
    assert manifest.default_decision == former.manifest.default_decision
    assert manifest.operating_points.keys() == {"fp32", "int8"}
    told = manifest.provenance["adapted"]
    assert told["bundle"] == former.hash
    assert told["images"]["all"] == BAGS  # neither the copy nor the broken file
    assert sum(told["images"][name] for name in ("fitted", "held", "trimmed")) == BAGS
    card = adapted.files["README.md"].decode()
    assert f"From the bundle small ({former.hash[:12]})" in card
    assert "## Before it was adapted\n\n### small" in card
    assert card.count("\n## INT8\n") == 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_alarms_on_bags_that_were_held_out_are_those_asked_for(
    folder: Path, adapted: Bundle, tmp_path: Path, precision: Precision
):
    out = tmp_path / "results.parquet"
    Scan(ScanSettings(sources=(folder / "bags",), model=adapted.path, out=out, precision=precision)).run()
    results = read_results(out)
    of_bags = [k for k, uri in enumerate(results.uris) if "bag-" in uri]
    logits = np.log(results.probabilities[of_bags]) - np.log1p(-results.probabilities[of_bags])
    parts = divide(logits.astype(np.float32))
    for name, scores in decision_scores(results, adapted).items():
        point = operating_point(adapted, precision, name, pfa=0.1)
        held = scores[of_bags][parts.held] if name != "classes" else np.delete(scores[of_bags], parts.trimmed)
        assert 0.08 <= (held >= point.threshold).mean() <= 0.11


def adapt_and_die(settings: AdaptSettings, killed_in: tuple[str, int]) -> None:
    """Adapt in a process that kills itself: nothing is tidied up, as at a power cut."""
    phase2.CHECKPOINT_EVERY_S = 0.0

    def die(phase: str, done: int, _total: int, _figures: Mapping[str, float]) -> None:
        if phase == killed_in[0] and done >= killed_in[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    adapt(settings, die)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[("phase II", 31)], [("scan in fp32", 50), ("phase II", 61)]])
def test_a_run_that_was_killed_ends_with_the_same_bytes(
    settings: AdaptSettings, adapted: Bundle, tmp_path: Path, kills: list[tuple[str, int]]
):
    own = AdaptSettings(
        settings.bundle, settings.benign, tmp_path / "site", tmp_path / "run", "site", threads=1
    )
    for killed_in in kills:
        process = multiprocessing.get_context("spawn").Process(target=adapt_and_die, args=(own, killed_in))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not own.out.exists()
    seen: list[tuple[str, int]] = []
    again = adapt(own, lambda phase, done, _total, _figures: seen.append((phase, done)))
    assert ("phase II", 1) not in seen  # it went on
    assert again.files == adapted.files
    assert {**again.manifest.document(), "created": ""} == {**adapted.manifest.document(), "created": ""}


def test_it_can_be_adapted_again_and_loses_an_int8_form_that_decides_otherwise(
    settings: AdaptSettings, adapted: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reduced, "AGREEMENT", 1.0)
    fast = Phase2Settings(steps=5)
    again = adapt(
        AdaptSettings(adapted.path, settings.benign, tmp_path / "b", tmp_path / "r", phase2=fast, threads=1)
    )
    card = again.files["README.md"].decode()
    assert card.count("## Before it was adapted") == 1
    assert f"From the bundle site ({adapted.hash[:12]})" in card
    assert not again.has_int8
    assert again.manifest.operating_points.keys() == {"fp32"}
    assert "\n## INT8\n" not in card


def test_what_cannot_be_adapted_is_refused(settings: AdaptSettings, adapted: Bundle, tmp_path: Path):
    with pytest.raises(Refused, match="a bundle is written to a new folder"):
        adapt(replace(settings, out=adapted.path))
    few = AdaptSettings(
        settings.bundle, settings.benign, tmp_path / "few", tmp_path / "few.run", limit=30, threads=1
    )
    with pytest.raises(Refused, match="only 30 different images"):
        adapt(few)
    with pytest.raises(Refused, match="differs in limit"):
        adapt(AdaptSettings(settings.bundle, settings.benign, few.out, few.run, limit=31, threads=1))


def scores_of(benign: int, threats: int, seed: int, apart: float) -> np.ndarray:
    """Draw largest logits that fall off exponentially, and behind them those of threats far above."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.exponential(1.5, benign) - 4, random.normal(apart, 1, threats)])


def measured_pfa(largest: np.ndarray, kept: np.ndarray) -> float:
    """Return the false-alarm rate where 5 % of the images kept shall alarm."""
    fresh = scores_of(100_000, 0, 9, 0)
    return float((fresh >= threshold_at(largest[kept], 0.05)).mean())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05])
def test_threats_that_are_recognized_are_left_out_up_to_a_twentieth(share: float):
    threats = round(4000 * share)
    largest = scores_of(4000 - threats, threats, 1, apart=15)
    out = outlying(np.stack([largest, largest - 1, largest, largest - 2, largest], axis=1))
    assert out[4000 - threats :].all()
    assert out[: 4000 - threats].mean() < 0.005
    assert measured_pfa(largest, ~out) == pytest.approx(0.05, abs=0.008)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_threats_that_are_not_recognized_lower_the_rate_by_their_share_at_most(share: float):
    threats = round(4000 * share)
    largest = scores_of(4000 - threats, threats, 1, apart=2)  # above 95 % of benign images, and not apart
    out = outlying(largest[:, None])
    assert not out[4000 - threats :].any()
    assert 0.05 - share - 0.008 <= measured_pfa(largest, ~out) <= 0.05


def test_parts_lie_all_over_the_archive_in_whole_stretches():
    parts = divide(np.zeros((200, 5), np.float32))
    assert parts.fitted[:11].tolist() == [*range(10), 20]
    assert parts.held[-10:].tolist() == list(range(190, 200))
    assert sorted([*parts.fitted, *parts.held]) == list(range(200))
