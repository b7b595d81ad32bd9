"""torch Inductor: the model compiled from the weights of a bundle, behind the same words as any engine."""

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
import torch
import torch_bundle
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.runtime import OUTPUTS, Engine, Outputs, Runner, open_engine
from gbad_batch.export import engine_for

pytestmark = pytest.mark.slow  # compiling even a small network takes minutes

LOSS = 1e-4  # relative, Inductor on the CPU against OpenVINO, both in float32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small", torch_bundle.manifest(), torch_bundle.files()
    )


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return engine_for(bundle, device="cpu", engine="inductor", threads=1)


@pytest.fixture(scope="module")
def runner(engine: Engine):
    with closing(open_engine(engine, 1)) as runner:
        yield runner


def equal(found: Outputs, wanted: Outputs) -> bool:
    return all(getattr(found, name).tobytes() == getattr(wanted, name).tobytes() for name in OUTPUTS)


def test_it_passes_the_gate_and_says_what_it_is(engine: Engine) -> None:
    assert engine.parity is not None
    assert engine.parity.images == tiny.GATE_IMAGES
    assert engine.parity.loss_rel_max < LOSS
    assert engine.description.startswith(f"inductor {torch.__version__.partition('+')[0]}")
    assert engine.description.endswith("fp32 on cpu")


def test_it_agrees_with_openvino(bundle: Bundle, runner: Runner) -> None:
    pixels = tiny.pictures(11, seed=4)
    found = runner(pixels)
    with closing(open_engine(engine_for(bundle), 1)) as other:
        wanted = other(pixels)
    for name in OUTPUTS:
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=LOSS, atol=1e-5)


def test_scores_do_not_depend_on_batch_size_order_or_neighbours(runner: Runner) -> None:
    """With one number of threads. Other numbers of threads, and other engines, agree within the tolerance."""
    pixels = tiny.pictures(19, seed=6)
    wanted = runner(pixels)
    for batch in (1, 3, 8):
        parts = [runner(pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
        for name in OUTPUTS:
            assert np.array_equal(
                np.concatenate([getattr(part, name) for part in parts]), getattr(wanted, name)
            )
    order = np.random.default_rng(0).permutation(len(pixels))
    assert np.array_equal(runner(pixels[order]).x, wanted.x[order])


def test_a_cached_engine_is_not_built_again(bundle: Bundle, engine: Engine) -> None:
    assert engine_for(bundle, device="cpu", engine="inductor", threads=1) == engine


def test_an_engine_that_is_not_what_it_says_is_refused(engine: Engine) -> None:
    for wrong in (replace(engine, input_size=32), replace(engine, blob=engine.blob[:1000])):
        with pytest.raises(Refused):
            open_engine(wrong, 1)


def test_a_scan_runs_on_it(bundle: Bundle, tmp_path: Path) -> None:
    for number, pixels in enumerate(tiny.pictures(3)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    settings = ScanSettings(sources=(str(tmp_path),), model=bundle.path, threads=1, device="cpu")
    ours, theirs = (
        list(Scan(replace(settings, engine=engine)).rows()) for engine in ("inductor", "openvino")
    )
    assert [row.status for row in ours] == ["ok"] * 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.anomaly_score == pytest.approx(other.anomaly_score, abs=1e-3)


OPENED = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
from contextlib import closing
from pathlib import Path
import numpy as np
import tiny_bundle as tiny
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.runtime import open_engine
from gbad_batch.export import engine_for
engine = engine_for(Bundle.read(sys.argv[1]), device="cpu", engine="inductor", threads=1)
with closing(open_engine(engine, 1)) as runner:
    np.save(sys.argv[3], runner(tiny.pictures(5, seed=9)).x)
"""


def test_another_process_opens_it_to_the_same_bits_and_leaves_nothing_behind(
    bundle: Bundle, runner: Runner, tmp_path: Path
) -> None:
    """Inductor's own folders are shared by all users, and what lies in them is run as code."""
    shared, out = tmp_path / "shared", tmp_path / "x.npy"
    shared.mkdir()
    words = [sys.executable, "-c", OPENED, str(bundle.path), str(shared), str(out)]
    subprocess.run(words, check=True, cwd=Path(__file__).parent)
    assert np.array_equal(np.load(out), runner(tiny.pictures(5, seed=9)).x)
    assert list(shared.iterdir()) == []
