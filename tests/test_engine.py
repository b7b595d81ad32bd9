"""Engines: what may be asked for, the cache, the parity gate, and scores that belong to the image alone."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle as tiny
from numpy.typing import NDArray
from PIL import Image

from gbad_batch.engine.bundle import Bundle, default_bundle_path, write_bundle
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.errors import BundleError, MissingExtra, Refused
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import OUTPUTS, Engine, EngineFailed, NotFinite, Runner, open_engine
from gbad_batch.engine.runtime.cache import EngineCache, cache_key
from gbad_batch.engine.runtime.runtime_tensorrt import SIZES
from gbad_batch.engine.settings import BATCH_SIZES
from gbad_batch.engine.system.gpus import pci_gpus
from gbad_batch.export import choice, engine_for, resolve
from gbad_batch.export.gate import Built, first_to_pass


@pytest.fixture(scope="module")
def engine(tiny_bundle: Bundle) -> Engine:
    return engine_for(tiny_bundle)


def score(
    engine: Engine, pixels: NDArray[np.uint8], batch: int, threads: int = 1
) -> dict[str, NDArray[np.float32]]:
    """All outputs of pixels, run in batches of one size and a smaller last one."""
    with closing(open_engine(engine, threads)) as runner:
        parts = [runner(pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS}


def score_at_once(
    engine: Engine, pixels: NDArray[np.uint8], batch: int, threads: int, streams: int
) -> dict[str, NDArray[np.float32]]:
    """All outputs of pixels, with a batch in each stream at a time and one more that waits."""
    chunks = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
    with closing(open_engine(engine, threads, streams)) as runner, ThreadPoolExecutor(streams + 1) as pool:
        parts = list(pool.map(runner, chunks))
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS}


def assert_same_bits(found: dict[str, NDArray[np.float32]], wanted: dict[str, NDArray[np.float32]]) -> None:
    for name in OUTPUTS:
        assert found[name].tobytes() == wanted[name].tobytes(), name


# --- scores ---


def test_outputs_agree_with_the_reference_evaluator(engine: Engine) -> None:
    pixels = tiny.pictures(7, seed=1)
    found, wanted = score(engine, pixels, batch=7), tiny.reference(pixels)
    for name in OUTPUTS:
        assert found[name].dtype == np.float32
        assert found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, atol=2e-5)


def gate_pixels(bundle: Bundle, count: int) -> NDArray[np.uint8]:
    decode = Decoder(bundle.manifest.architecture.input_size, DecodeLimits())
    pixels = [decode(Row(uri="gate"), image) for image in bundle.gate().images[:count]]
    return np.stack([each for each in pixels if each is not None])


@pytest.fixture(scope="module", params=["tiny", pytest.param("default", marks=pytest.mark.slow)])
def images(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> tuple[Engine, NDArray[np.uint8]]:
    if request.param == "default" and not (default_bundle_path() / "bundle.json").exists():
        pytest.skip("no default bundle is here")
    bundle = tiny_bundle if request.param == "tiny" else Bundle.read(default_bundle_path())
    return engine_for(bundle), gate_pixels(bundle, 19)


def test_scores_do_not_depend_on_batch_size_or_threads(images: tuple[Engine, NDArray[np.uint8]]) -> None:
    engine, pixels = images
    wanted = score(engine, pixels, batch=1)
    for batch, threads in ((1, 2), (2, 1), (5, 2), (8, 1), (8, 3), (16, 2), (19, 1)):
        assert_same_bits(score(engine, pixels, batch, threads), wanted)


def test_scores_do_not_depend_on_what_is_computed_at_once(images: tuple[Engine, NDArray[np.uint8]]) -> None:
    engine, pixels = images
    wanted = score(engine, pixels, batch=8)
    for batch, threads, streams in ((1, 2, 2), (2, 4, 2), (3, 3, 3), (5, 5, 2), (8, 1, 4)):
        assert_same_bits(score_at_once(engine, pixels, batch, threads, streams), wanted)


def test_scores_do_not_depend_on_order_neighbours_or_memory(images: tuple[Engine, NDArray[np.uint8]]) -> None:
    engine, pixels = images
    wanted = score(engine, pixels, batch=4)
    order = np.random.default_rng(0).permutation(len(pixels))
    shuffled = score(engine, pixels[order], batch=8, threads=2)
    assert_same_bits({name: array[np.argsort(order)] for name, array in shuffled.items()}, wanted)
    strangers = np.random.default_rng(1).integers(0, 256, pixels.shape, dtype=np.uint8)
    mixed = np.stack([pixels, strangers], axis=1).reshape(-1, *pixels.shape[1:])
    assert_same_bits({name: array[::2] for name, array in score(engine, mixed, batch=6).items()}, wanted)
    odd = np.empty(pixels.size + 1, np.uint8)[1:].reshape(pixels.shape)  # at an odd address
    odd[:] = pixels
    assert_same_bits(score(engine, odd, batch=4), wanted)


def test_a_cached_engine_gives_the_same_bits_as_one_in_memory(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pixels = tiny.pictures(6, seed=2)
    stored = engine_for(tiny_bundle, cache_dir=tmp_path / "cache")
    again = engine_for(tiny_bundle, cache_dir=tmp_path / "cache")
    assert again == stored
    assert_same_bits(score(again, pixels, 4), score(in_memory(tiny_bundle, tmp_path), pixels, 4))


def in_memory(bundle: Bundle, tmp_path: Path) -> Engine:
    unusable = tmp_path / "a file"
    unusable.touch()
    return engine_for(bundle, cache_dir=unusable)


def test_outputs_outlive_the_next_batch(engine: Engine) -> None:
    with closing(open_engine(engine, 1)) as runner:
        first = runner(tiny.pictures(3, seed=3))
        kept = first.x.copy()
        runner(tiny.pictures(3, seed=4))
    np.testing.assert_array_equal(first.x, kept)


def test_pixels_of_another_form_are_an_error_of_the_caller(engine: Engine) -> None:
    with closing(open_engine(engine, 1)) as runner:
        for wrong in (
            np.zeros((2, tiny.SIZE, tiny.SIZE, 3), np.float32),
            np.zeros((2, 3, tiny.SIZE, tiny.SIZE), np.uint8),
            np.zeros((0, tiny.SIZE, tiny.SIZE, 3), np.uint8),
        ):
            with pytest.raises(ValueError, match="must be uint8"):
                runner(wrong)  # type: ignore[arg-type]


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from gbad_batch.engine import Scan, ScanSettings

signal.signal(signal.SIGUSR1, lambda *_: None)
for _ in range(2):
    Scan(ScanSettings(sources=(sys.argv[1],), out=Path(sys.argv[2]), model=sys.argv[3], overwrite=True)).run()
    os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_do_no_harm_once_an_engine_is_closed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """OpenVINO's plugin takes the stack that signals are handled on with it when it goes."""
    for number in range(16):
        Image.new("RGB", (80, 60), (200, 200, number)).save(tmp_path / f"{number}.png")
    words = [sys.executable, "-c", SIGNALLED, tmp_path, tmp_path / "r.parquet", tiny_bundle.path]
    subprocess.run(list(map(str, words)), check=True)


FIRST_BATCHES = """
import faulthandler, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import tiny_bundle as tiny
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.runtime import open_engine
from gbad_batch.export import engine_for

faulthandler.dump_traceback_later(60, exit=True)
runner, together = open_engine(engine_for(Bundle.read(Path(sys.argv[1]))), 8, 8), threading.Barrier(8)

def first(seed):
    pixels = tiny.pictures(2, seed=seed)
    together.wait()
    runner(pixels)

sys.setswitchinterval(1e-5)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(first, range(8)))
"""


@pytest.mark.usefixtures("engine")
def test_first_batches_that_start_together_end(tiny_bundle: Bundle) -> None:
    """OpenVINO's own first conversion of an array is not safe there: every other attempt hung."""
    words = [sys.executable, "-c", FIRST_BATCHES, str(tiny_bundle.path)]
    for _ in range(4):
        subprocess.run(words, check=True, cwd=Path(__file__).parent)


@pytest.mark.parametrize(("threads", "streams"), [(1, 1), (2, 1), (3, 3)])
def test_a_batch_that_fails_is_told_and_harms_no_other(threads: int, streams: int) -> None:
    """Also on one thread, also the same batch again, and whatever is computed at the same time."""
    from gbad_batch.engine.runtime import runtime_openvino
    from gbad_batch.export import to_openvino

    blob = to_openvino.build(tiny.network_that_fails(), tiny.bigan())
    version = runtime_openvino.version()
    weak = Engine("openvino", version, "cpu", "fp32", tiny.SIZE, tiny.FEATURES, "hash", "key", blob)
    good = tiny.pictures(5)
    bad = good.copy()
    bad[3] = 0
    wanted = score(weak, good, batch=5)

    def failed(runner: Runner, pixels: NDArray[np.uint8]) -> bool:
        try:
            found = runner(pixels)
        except EngineFailed:
            return True
        assert_same_bits({name: getattr(found, name) for name in OUTPUTS}, wanted)
        return False

    batches = [good, bad, good, bad, bad, good, bad, good, good, bad]
    with closing(open_engine(weak, threads, streams)) as runner, ThreadPoolExecutor(streams) as pool:
        found = list(pool.map(failed, [runner] * len(batches), batches))
    assert found == [batch is bad for batch in batches]


def test_values_that_are_no_numbers_stop_the_scan_and_name_their_images() -> None:
    """A network that divides 0 by 0 on a black image, as a machine with bad memory might."""
    from gbad_batch.engine.runtime import runtime_openvino
    from gbad_batch.export import to_openvino

    blob = to_openvino.build(tiny.network_without_numbers(), tiny.bigan())
    broken = Engine(
        "openvino", runtime_openvino.version(), "cpu", "fp32", tiny.SIZE, tiny.FEATURES, "hash", "key", blob
    )
    pixels = tiny.pictures(5)
    pixels[[1, 3]] = 0
    with closing(open_engine(broken, 1)) as runner:
        with pytest.raises(NotFinite, match="not finite for 2 images") as caught:
            runner(pixels)
        assert caught.value.positions == (1, 3)
        assert caught.value.exit_code == 1
        assert np.isfinite(runner(pixels[[0, 2, 4]]).x).all()  # the neighbours score alone


def test_a_bigan_whose_standardization_does_nothing_can_be_opened() -> None:
    """OpenVINO removes operators that change nothing, and their names go to the input."""
    import torch
    import torch_bundle

    from gbad_batch.engine.runtime import runtime_openvino
    from gbad_batch.export import to_openvino
    from gbad_batch.export.to_onnx import export_graphs

    model = torch_bundle.model()
    model.bigan.mean.zero_()
    model.bigan.std.fill_(1)
    size, features = model.architecture.input_size, model.architecture.features
    blob = to_openvino.build(*export_graphs(model))
    version = runtime_openvino.version()
    engine = Engine("openvino", version, "cpu", "fp32", size, features, "hash", "key", blob)
    pixels = tiny.pictures(5)
    wanted = model(torch.from_numpy(pixels))
    with closing(open_engine(engine, 1)) as runner:
        found = runner(pixels)
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-3, atol=1e-5)


ISA_SCRIPT = """
import sys
import numpy as np
from contextlib import closing
from pathlib import Path
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.runtime import OUTPUTS, open_engine
from gbad_batch.export import engine_for
engine = engine_for(Bundle.read(sys.argv[1]), cache_dir=Path(sys.argv[2]))
size = engine.input_size
pixels = np.random.default_rng(8).integers(0, 256, (9, size, size, 3), dtype=np.uint8)
def bits(batch, threads):
    with closing(open_engine(engine, threads)) as runner:
        parts = [runner(pixels[i : i + batch]) for i in range(0, 9, batch)]
    return [np.concatenate([getattr(part, name) for part in parts]).tobytes() for name in OUTPUTS]
assert bits(1, 1) == bits(4, 2) == bits(9, 1)
"""


@pytest.mark.slow  # the default bundle, in two processes
def test_scores_belong_to_the_image_on_a_lesser_processor_too(tmp_path: Path) -> None:
    """One cache, engines of two instruction sets in it: each process finds its own."""
    bundle = str(default_bundle_path())
    if not (default_bundle_path() / "bundle.json").exists():
        pytest.skip("no default bundle is here")
    for limit in ("AVX2", "ALL"):
        subprocess.run(
            [sys.executable, "-c", ISA_SCRIPT, bundle, str(tmp_path / "cache")],
            check=True,
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": limit},
        )
    assert len(list((tmp_path / "cache").iterdir())) == 2


# --- opening ---


def test_an_engine_that_is_not_what_it_says_is_refused(engine: Engine) -> None:
    for wrong in (
        replace(engine, input_size=32),
        replace(engine, features=tiny.FEATURES + 1),
        replace(engine, blob=engine.blob[: len(engine.blob) // 2]),
        replace(engine, backend="abacus"),
    ):
        with pytest.raises(Refused):
            open_engine(wrong, 1)


def test_a_closed_runner_says_so(engine: Engine) -> None:
    runner = open_engine(engine, 2, 2)
    runner.close()
    runner.close()
    for _ in range(3):
        with pytest.raises(ValueError, match="closed"):
            runner(tiny.pictures(1))


def test_a_graph_that_asks_for_a_large_map_is_refused(tiny_bundle: Bundle) -> None:
    import onnx

    from gbad_batch.export import to_openvino

    model = onnx.load_from_string(tiny_bundle.network_onnx)
    stem = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in stem.attribute if a.name == "pads").ints[:] = [60_000] * 4
    with pytest.raises(BundleError, match="above the limit"):
        to_openvino.build(model.SerializeToString(), tiny_bundle.bigan_onnx)


def test_neither_torch_nor_a_reporting_package_is_loaded(tiny_bundle: Bundle) -> None:
    """OpenVINO's model converter reports its import to its maker: a scan does without, and without torch."""
    code = (
        "import sys\n"
        "import gbad_batch.export\n"
        "assert not {'openvino', 'numpy'} & sys.modules.keys(), 'heavy imports'\n"
        "from gbad_batch.engine.bundle import Bundle\n"
        "gbad_batch.export.engine_for(Bundle.read(sys.argv[1]))\n"
        "assert 'openvino' in sys.modules\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "unwanted = {'openvino_telemetry', 'torch', 'onnx', 'sklearn', 'scipy', 'pandas'}\n"
        "assert not loaded & unwanted, loaded & unwanted\n"
        "assert not [name for name in sys.modules if name.startswith('openvino.tools.ovc')]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_bundle.path)], check=True)


# --- the parity gate ---


def test_the_gate_reports_what_it_compared(engine: Engine) -> None:
    parity = engine.parity
    assert parity is not None
    assert parity.images == tiny.GATE_IMAGES
    assert 0 <= parity.loss_rel_max < 1e-3
    assert parity.score_max.keys() == {"gbad", "classes", "combined"}
    assert len(parity.flips) == 9
    assert set(parity.flips.values()) == {0.0}
    assert parity.cpu_flags
    assert parity.versions.keys() == {"openvino", "numpy"}
    assert f"on {tiny.GATE_IMAGES} images" in str(parity)


def changed_bundle(path: Path, *, loss_factor: float = 1.0, tolerance: dict[str, float]) -> Bundle:
    from gbad_batch.engine.bundle import pack_gate, unpack_gate

    gate = unpack_gate(tiny.files()["gate.tar"])
    packed = pack_gate(
        gate.images, gate.reconstruction_loss * loss_factor, gate.feature_matching_loss, gate.logits
    )
    return write_bundle(
        path, tiny.manifest() | {"tolerance": tolerance}, {**tiny.files(), "gate.tar": packed}
    )


@pytest.mark.parametrize(
    ("tolerance", "reason"),
    [
        ({"loss_rel": 0.01, "score": 1.0, "flips": 1.0}, "relative difference of a loss is 0.048"),
        ({"loss_rel": 1.0, "score": 0.001, "flips": 1.0}, "difference of a score"),
        ({"loss_rel": 1.0, "score": 1.0, "flips": 0.0}, "share of flipped decisions"),
    ],
)
def test_an_engine_beyond_the_tolerance_is_refused_and_not_kept(
    tmp_path: Path, tolerance: dict[str, float], reason: str
) -> None:
    bundle = changed_bundle(tmp_path / "bundle", loss_factor=1.05, tolerance=tolerance)
    with pytest.raises(Refused, match=reason):
        engine_for(bundle, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_of_several_forms_the_first_that_passes_is_taken(
    tiny_bundle: Bundle, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx
    from onnx import numpy_helper

    from gbad_batch.export import to_openvino

    def with_weights(factor: float) -> Built:
        other = onnx.load_from_string(tiny_bundle.bigan_onnx)
        for tensor in other.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim > 1:
                tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
        blob = to_openvino.build(tiny_bundle.network_onnx, other.SerializeToString())
        return Built(blob, {"factor": factor})

    wrong, overflowing = with_weights(1.3), with_weights(float("nan"))
    right = Built(engine.blob, {"factor": 1})
    unfinished = replace(engine, blob=b"", parity=None)
    with caplog.at_level("INFO"):
        found, built = first_to_pass(tiny_bundle, unfinished, iter([wrong, overflowing, right]), 1)
    assert (found, built) == (engine, right)
    assert "does not agree with FP32" in caplog.text
    assert "values that are not finite" in caplog.text
    with pytest.raises(Refused, match="does not agree with FP32"):
        first_to_pass(tiny_bundle, unfinished, iter([wrong]), 1)

    def built_when_asked_for():
        yield right
        pytest.fail("the first has passed")

    assert first_to_pass(tiny_bundle, unfinished, built_when_asked_for(), 1)[0] == engine


def test_gate_images_that_do_not_decode_are_refused(tmp_path: Path) -> None:
    from gbad_batch.engine.bundle import pack_gate, unpack_gate

    gate = unpack_gate(tiny.files()["gate.tar"])
    packed = pack_gate(
        [b"no picture", *gate.images[1:]], gate.reconstruction_loss, gate.feature_matching_loss, gate.logits
    )
    bundle = write_bundle(tmp_path / "bundle", tiny.manifest(), {**tiny.files(), "gate.tar": packed})
    with pytest.raises(BundleError, match=r"gate-0000\.jpg .* cannot be used"):
        engine_for(bundle, cache_dir=tmp_path / "cache")


# --- the cache ---


@pytest.fixture
def filled(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    engine_for(tiny_bundle, cache_dir=tmp_path / "cache")
    return tmp_path / "cache"


def record_of(entry: Path) -> dict[str, Any]:
    """Read the line of JSON that stands before the engine."""
    return json.loads(entry.read_bytes().partition(b"\n")[0])


def test_a_cached_engine_is_private_and_its_gate_not_repeated(
    tiny_bundle: Bundle, filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (entry,) = filled.iterdir()
    assert filled.stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600
    assert record_of(entry)["parity"]["images"] == tiny.GATE_IMAGES
    assert record_of(entry)["facts"]["bundle"] == tiny_bundle.hash
    before = entry.stat()
    with caplog.at_level(logging.INFO, "gbad_batch.export"):
        engine_for(tiny_bundle, cache_dir=filled)
    assert not caplog.text
    assert entry.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "damage", ["engine bit", "engine cut", "record value", "record cut", "empty", "link"]
)
def test_a_damaged_entry_is_built_again(
    tiny_bundle: Bundle, filled: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (entry,) = filled.iterdir()
    whole = entry.read_bytes()
    if damage == "link":
        entry.rename(filled.parent / "elsewhere")
        entry.symlink_to(filled.parent / "elsewhere")
    else:
        damaged = {
            "engine bit": whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:],
            "engine cut": whole[:-1],
            "record value": whole.replace(b'"images": 24', b'"images": 25', 1),
            "record cut": whole[50:],
            "empty": b"",
        }[damage]
        assert damaged != whole
        entry.write_bytes(damaged)
    engine = engine_for(tiny_bundle, cache_dir=filled)
    assert "will be rebuilt" in caplog.text
    assert engine.parity is not None
    assert engine.parity.images == tiny.GATE_IMAGES
    assert not entry.is_symlink()
    assert entry.read_bytes().endswith(engine.blob)
    assert engine_for(tiny_bundle, cache_dir=filled) == engine


@pytest.mark.parametrize("fault", ["open to others", "a link", "a file", "of another user"])
def test_an_unsafe_cache_is_not_used_and_said_so(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    folder = tmp_path / "cache"
    (tmp_path / "real").mkdir(mode=0o700)
    if fault == "a link":
        folder.symlink_to(tmp_path / "real")
    elif fault == "a file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
    if fault == "open to others":
        folder.chmod(0o750)
    if fault == "of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, 12345, -1)
    assert engine_for(tiny_bundle, cache_dir=folder).parity is not None
    assert "is not used" in caplog.text
    assert not list((tmp_path / "real").iterdir())
    assert folder.is_file() or not list(folder.iterdir())


def as_another_user(script: str, home: str | None) -> str:
    """Run a script in a process of a user without an entry in the system's list; returns what it logs."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    # after the imports, which may lie where only root may look
    become = (
        "import os; from gbad_batch.engine.runtime.cache import EngineCache; os.setresuid(*3 * [54321])\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", become + script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("home", [None, "closed", "absent", "read-only"])
def test_a_user_without_a_usable_home_builds_in_memory(tmp_path: Path, home: str | None) -> None:
    """As in a container that runs under a number: no name, a home that is not there or is root's."""
    if home == "closed":
        (tmp_path / "closed").mkdir(mode=0o700)
    if home == "read-only":
        (tmp_path / "read-only").mkdir(mode=0o755)
    told = as_another_user("assert EngineCache.open() is None", home and str(tmp_path / home))
    assert "is not used" in told
    assert "Traceback" not in told


def test_the_users_cache_follows_xdg(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = EngineCache.open()
    assert cache is not None
    assert cache.path == tmp_path / "xdg" / "gbad-batch"
    cache.close()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: to be ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = EngineCache.open()
    assert cache is not None
    assert cache.path == tmp_path / "home" / ".cache" / "gbad-batch"
    cache.close()
    assert not caplog.text


def test_the_key_holds_all_that_an_engine_depends_on(filled: Path) -> None:
    (entry,) = filled.iterdir()
    facts = record_of(entry)["facts"]
    wanted = {
        "bundle",
        "backend",
        "version",
        "device",
        "cpu_flags",
        "isa_limit",
        "precision",
        "input_size",
        "batch",
    }
    assert facts.keys() == wanted
    assert entry.stem == cache_key(facts)
    keys = {cache_key({**facts, name: "other"}) for name in facts}
    assert len(keys | {cache_key(facts)}) == len(facts) + 1


# --- what may be asked for ---


@pytest.mark.parametrize(
    ("device", "engine", "precision", "error", "reason"),
    [
        ("cuda", "auto", "auto", Refused, "--device cuda cannot be used"),
        ("cuda", "inductor", "fp16", Refused, "--device cuda cannot be used"),
        ("cuda:1", "auto", "auto", Refused, "--device cuda:1 cannot be used"),
        ("cuda:0,2", "auto", "auto", Refused, "--device cuda:0,2 cannot be used: this machine has no NVIDIA"),
        ("cuda:0,", "auto", "auto", Refused, r"is not auto, cpu, cuda or cuda:N\[,N...\]: try auto"),
        ("cuda", "openvino", "auto", Refused, "runs on the CPU"),
        ("tpu", "auto", "auto", Refused, "is not auto, cpu, cuda"),
        ("cpu", "tensorrt", "auto", Refused, "runs on an NVIDIA GPU"),
        ("auto", "tensorrt", "auto", MissingExtra, r"pip install '\.\[tensorrt\]'"),
        ("cpu", "inductor", "fp16", Refused, "for GPU backends"),
        ("auto", "abacus", "auto", Refused, "is not an engine: give auto, openvino"),
        ("auto", "auto", "int8", Refused, "has no INT8 network"),
        ("auto", "auto", "fp16", Refused, "for GPU backends"),
        ("auto", "auto", "fp8", Refused, "is not a precision: give auto, fp32"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    tiny_bundle: Bundle, device: str, engine: str, precision: str, error: type[Refused], reason: str
) -> None:
    if error is MissingExtra and importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed here")
    with pytest.raises(error, match=reason) as caught:
        engine_for(tiny_bundle, device=device, engine=engine, precision=precision)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_gpu_is_not_used_without_dali(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images would be decoded on the CPU, at a fraction of the speed, and to other bits."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # as Python marks what cannot be imported
    with pytest.raises(Refused, match=r"DALI, .* is not installed \(in your clone .* '\.\[gpu\]'\)"):
        resolve(tiny_bundle, "cuda", "auto", "auto")
    assert resolve(tiny_bundle, "cpu", "auto", "auto").device == "cpu"


def test_of_several_gpus_each_must_be_usable_and_the_first_gets_the_engine(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"cuda:0": None, "cuda:1": "it is lost", "cuda:2": None}
    monkeypatch.setattr(choice, "nvidia_gpus", lambda: [*known])
    monkeypatch.setattr(choice, "unusable", known.get)
    assert resolve(tiny_bundle, "cuda:2,0", "inductor", "auto") == ("cuda:2", "inductor", "fp16")
    assert choice.listed_gpus("cuda:2,0,2") == ("cuda:2", "cuda:0")
    assert choice.listed_gpus("cuda") == choice.listed_gpus("auto") == ()
    with pytest.raises(Refused, match=r"--device cuda:0,1 cannot be used: .* 3 NVIDIA GPUs, and it is lost"):
        resolve(tiny_bundle, "cuda:0,1", "inductor", "auto")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_cpu_is_resolved_to_openvino_fp32(tiny_bundle: Bundle, device: str) -> None:
    assert resolve(tiny_bundle, device, "auto", "auto") == ("cpu", "openvino", "fp32")
    assert resolve(tiny_bundle, device, "openvino", "fp32") == ("cpu", "openvino", "fp32")
    assert resolve(tiny_bundle, device, "inductor", "auto") == ("cpu", "inductor", "fp32")


def test_a_batch_on_a_gpu_is_as_large_as_its_engines_are_built_for() -> None:
    assert BATCH_SIZES["cuda"] == SIZES[-1]


def test_nvidia_hardware_is_seen_without_its_driver(tmp_path: Path) -> None:
    for address, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),  # the GPU's own sound device
        ("0000:02:00.0", "0x8086", "0x030000"),
    ):
        (tmp_path / address).mkdir()
        (tmp_path / address / "vendor").write_text(f"{vendor}\n")
        (tmp_path / address / "class").write_text(f"{kind}\n")
    assert pci_gpus(tmp_path) == ["0000:01:00.0"]
    assert pci_gpus(tmp_path / "absent") == []
