"""The chain of a GPU on stand-ins for CUDA and TensorRT: builder, plans, lanes, gate; no card is needed.

The stand-ins (`fake_cuda`, `fake_tensorrt`) raise where the real libraries compute rubbish or end the
process.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import fake_torch_tensorrt
import numpy as np
import onnx
import pytest
import tiny_bundle as tiny
import torch
import torch_bundle
from benchmarks.speed import gpu_parts
from PIL import Image
from stubs import TYPING, unknown_names

from gbad_batch.engine import ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import OUTPUTS, Engine, Runner, open_engine, runtime_tensorrt
from gbad_batch.engine.sources import Candidate
from gbad_batch.engine.stages import Batch, Stages
from gbad_batch.engine.stages.plan import default_plan, readers
from gbad_batch.engine.stages.scorer import Scorer
from gbad_batch.engine.workers.chunk import Chunk
from gbad_batch.engine.workers.worker import Worker
from gbad_batch.export import engine_for, to_tensorrt
from gbad_batch.export.to_tensorrt import PlanBuilder

SIZES = (2, 3, 5)  # of the graphs here: the real ones would take an hour without a GPU
LARGEST = SIZES[-1]
ALIKE = 1e-4  # relative difference of a loss, in float32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_bundle(folder, torch_bundle.manifest(), torch_bundle.files())


@pytest.fixture(scope="module")
def exported(bundle: Bundle) -> Iterator[None]:
    """Export each graph once: that takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("trunk_graph", "bigan_graph"):
            patch.setattr(to_tensorrt, name, once(getattr(to_tensorrt, name)))
        for form in to_tensorrt.FORMS:
            to_tensorrt.trunk_graph(bundle, "fp32", form)
        to_tensorrt.bigan_graph(bundle, "fp32")
        yield


def once(export: Callable[..., bytes]) -> Callable[..., bytes]:
    """Keep what a function exports, by bundle, precision and form."""
    made: dict[tuple[str, ...], bytes] = {}

    def kept(bundle: Bundle, *form: str) -> bytes:
        key = (bundle.hash, *form)
        if key not in made:
            made[key] = export(bundle, *form)
        return made[key]

    return kept


@pytest.fixture
def cuda() -> Iterator[fake_cuda.FakeCuda]:
    with fake_cuda.fake_gpu() as cuda:
        yield cuda


@pytest.fixture
def tensorrt(
    cuda: fake_cuda.FakeCuda,
    exported: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[fake_tensorrt.World]:
    monkeypatch.setattr(runtime_tensorrt, "SIZES", SIZES)
    monkeypatch.setattr(to_tensorrt, "SIZES", SIZES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fake_tensorrt.installed(cuda, monkeypatch) as world:
        yield world


def build(bundle: Bundle, precision: str = "fp32") -> Engine:
    return engine_for(bundle, "cuda:0", "tensorrt", precision)


@pytest.mark.usefixtures("tensorrt")
def test_every_graph_has_a_context_of_its_own(bundle: Bundle) -> None:
    """Batches of every size score as OpenVINO does, in any order: no graph spoils another one's context."""
    engine = build(bundle)
    assert engine.parity is not None
    with closing(open_engine(engine)) as runner, closing(open_engine(engine_for(bundle, "cpu"))) as cpu:
        for count in (1, 4, LARGEST + 1, 2, 3, 2 * LARGEST, 1):
            pixels = tiny.pictures(count, seed=count)
            found, wanted = runner(pixels), cpu(pixels)
            for name in ("reconstruction_loss", "feature_matching_loss"):
                np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=ALIKE)
            assert found.x.shape == wanted.x.shape


@pytest.mark.parametrize("images", SIZES)
def test_the_gate_sees_a_graph_of_any_size_that_computes_rubbish(
    bundle: Bundle, tensorrt: fake_tensorrt.World, images: int
) -> None:
    tensorrt.spoiled = lambda _, count: count == images
    with pytest.raises(Refused, match="does not agree with FP32"):
        build(bundle)


def test_the_gate_sees_a_lane_that_computes_rubbish(
    bundle: Bundle, tensorrt: fake_tensorrt.World, tmp_path: Path
) -> None:
    """The last context made is that of the second lane's last graph."""
    tensorrt.unbuildable = has_heads  # so that there is one candidate
    build(bundle)
    last, tensorrt.contexts = tensorrt.contexts, 0
    next((tmp_path / "gbad-batch").glob("*.engine")).unlink()
    tensorrt.spoiled = lambda context, _: context.number == last
    with pytest.raises(Refused, match="does not agree with FP32"):
        build(bundle)


@pytest.mark.usefixtures("tensorrt")
def test_two_batches_are_computed_at_once(bundle: Bundle, cuda: fake_cuda.FakeCuda) -> None:
    """Each of two threads waits for its own stream while the other's batch is computed."""
    both = threading.Barrier(2)
    with closing(open_engine(build(bundle))) as runner, ThreadPoolExecutor(2) as pool:
        pixels = [tiny.pictures(3, seed=seed) for seed in range(4)]
        wanted = [runner(each) for each in pixels]
        cuda.on_synchronize = lambda _: both.wait(60) and None  # pyright: ignore
        found = list(pool.map(runner, pixels))
    for one, other in zip(found, wanted, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in OUTPUTS)


class Meeting:
    """Lets the n-th calls of several places go on only once all of them have been reached."""

    def __init__(self, parties: int):
        self._all = threading.Barrier(parties)
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()

    def reach(self, place: str, waiting: range) -> None:
        with self._lock:
            call = self._calls[place]
            self._calls[place] += 1
        if call in waiting:
            self._all.wait(60)


class NothingNoted:
    """Notes no image as in a decoder."""

    def begin(self, key: bytes) -> None: ...
    def begin_all(self, keys: Sequence[bytes]) -> None: ...
    def end(self) -> None: ...


@pytest.mark.usefixtures("tensorrt")
def test_decode_engine_and_decision_overlap(
    bundle: Bundle, cuda: fake_cuda.FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is decided, two are in the engine and the fourth is decoded, all at one moment."""
    settings = ScanSettings(model=bundle.path, device="cuda:0", engine="tensorrt", precision="fp32")
    plan = replace(default_plan(build(bundle), cores=4), batch_size=3)
    meeting, turn = Meeting(4), threading.Lock()

    def decode(batch: Batch, _: object) -> None:
        with turn:  # one chunk at a time, as on a GPU
            meeting.reach("decode", range(3, 4))
            batch.images, batch.pixels = batch.rows, tiny.pictures(len(batch.rows), seed=1)
            for row in batch.images:
                row.status = "ok"

    with closing(Scorer(settings, plan)) as scorer:
        decide = Decision.score

        def decided(decision: Decision, *outputs: Any) -> Any:
            meeting.reach("decide", range(1))
            return decide(decision, *outputs)

        monkeypatch.setattr(Decision, "score", decided)
        cuda.on_synchronize = lambda _: meeting.reach("engine", range(1, 3))
        worker = Worker(Stages(scorer.setup(), lambda _: None, decode, scorer))
        chunks = [Chunk(n, [Candidate(Row(f"{n}-{i}"), b"") for i in range(3)]) for n in range(4)]
        noted: Any = NothingNoted()
        at_work = plan.threads - readers(plan.cores)  # the others wait for readers
        with ThreadPoolExecutor(at_work) as pool:
            finished = list(pool.map(lambda chunk: worker(chunk, noted), chunks))
    assert [(each.rows, each.failed) for each in finished] == [(3, 0)] * 4


@pytest.mark.usefixtures("tensorrt")
def test_the_benchmark_feeds_an_engine_as_a_scan_does(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pixels lie on the device, and every stream is busy: else a copy is measured."""
    engine, given = build(bundle), list[object]()
    meeting = Meeting(2)

    def opened(engine: Engine) -> Runner:
        runner = open_engine(engine)
        run = runner.__call__

        def noted(_: object, pixels: Any) -> Any:
            given.append(pixels)
            meeting.reach("engine", range(2))
            return run(pixels)

        monkeypatch.setattr(type(runner), "__call__", noted)
        return runner

    monkeypatch.setattr(gpu_parts, "open_engine", opened)
    monkeypatch.setattr(gpu_parts, "BATCH", 3)
    picture = tmp_path / "picture.png"
    Image.fromarray(tiny.pictures(1)[0]).save(picture)
    subject = gpu_parts.Subject(bundle, [picture], tmp_path, "cuda:0", seconds=0.01)
    assert gpu_parts._engine_speed(subject, engine) > 0
    assert all(isinstance(pixels, torch.Tensor) and len(pixels) == 3 for pixels in given)


@pytest.mark.usefixtures("tensorrt")
def test_a_batch_that_fails_leaves_its_lane_to_others(bundle: Bundle, cuda: fake_cuda.FakeCuda) -> None:
    failures = [RuntimeError("out of memory")]

    def fail(_: fake_cuda.Stream) -> None:
        if failures:
            raise failures.pop()

    with closing(open_engine(build(bundle))) as runner:
        pixels = tiny.pictures(3, seed=8)
        wanted = runner(pixels)
        cuda.on_synchronize = fail
        for _ in range(4):
            assert np.array_equal(runner(pixels).x, wanted.x)


def test_what_the_builder_measures_serves_the_next_build(
    bundle: Bundle, tensorrt: fake_tensorrt.World, tmp_path: Path
) -> None:
    build(bundle)
    first = tensorrt.measured
    assert first > 0
    (engine,) = (tmp_path / "gbad-batch").glob("*.engine")
    engine.unlink()
    build(bundle)
    assert tensorrt.measured == first
    engine.unlink()
    tensorrt.gpu = "another driver"  # torch gives the GPU the same name, and TensorRT refuses these timings
    build(bundle)
    assert tensorrt.measured == 2 * first


@pytest.mark.usefixtures("tensorrt")
def test_plans_are_built_exact_for_one_stream_and_every_size(bundle: Bundle) -> None:
    _, plans = runtime_tensorrt.unpack(build(bundle).blob)
    for part, entry in (("trunk", (64, 64, 3)), ("bigan", (32,))):
        facts, _ = fake_tensorrt.unpacked(plans[part])
        assert (facts["least"], facts["most"]) == ([1, *entry], [LARGEST, *entry])
        assert (facts["streams"], facts["tf32"]) == (0, False)
        assert facts["name"] == f"gbad-batch {part} of {bundle.hash}"


def has_heads(graph: onnx.ModelProto) -> bool:
    return "logits" in {port.name for port in graph.graph.output}


def test_a_form_that_cannot_be_built_leaves_the_other(
    bundle: Bundle, tensorrt: fake_tensorrt.World, caplog: pytest.LogCaptureFixture
) -> None:
    tensorrt.unbuildable = has_heads
    assert build(bundle).parity is not None
    assert "cannot be used in the form 'heads': TensorRT cannot build the gbad-batch trunk" in caplog.text


def test_a_graph_that_cannot_be_read_is_refused_with_the_parsers_words(
    bundle: Bundle, tensorrt: fake_tensorrt.World
) -> None:
    tensorrt.unreadable = lambda _: True
    with pytest.raises(Refused, match="no importer is registered for this operator"):
        build(bundle)


def test_a_plan_of_another_gpu_or_bundle_is_refused(bundle: Bundle, tensorrt: fake_tensorrt.World) -> None:
    engine = build(bundle)
    tensorrt.gpu = "another GPU"
    with pytest.raises(Refused, match="another GPU or another version"):
        open_engine(engine)
    tensorrt.gpu = fake_cuda.GPU_NAME
    for changes in ({"bundle_hash": "0" * 64}, {"precision": "fp16"}):
        with pytest.raises(Refused, match=r"its plan belongs to|must be"):
            open_engine(Engine(**{**vars(engine), **changes}))


def by_torch_tensorrt(bundle: Bundle, patch: pytest.MonkeyPatch) -> Engine:
    """Build with torch-tensorrt as a second builder, whose plans of both forms are the fastest."""
    fake_torch_tensorrt.install(patch)
    milliseconds = PlanBuilder.milliseconds

    def faster(plans: PlanBuilder, trunk: bytes, bigan: bytes) -> float:
        return milliseconds(plans, trunk, bigan) / (2 if plans.by_torch_tensorrt else 1)

    patch.setattr(PlanBuilder, "milliseconds", faster)
    return build(bundle)


@pytest.mark.usefixtures("tensorrt")
def test_plans_of_torch_tensorrt_are_candidates_and_the_fastest_wins(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = by_torch_tensorrt(bundle, monkeypatch)
    assert fake_torch_tensorrt.VERSION in engine.version
    (entry,) = (tmp_path / "gbad-batch").glob("*.engine")
    built = json.loads(entry.read_bytes().partition(b"\n")[0])["built"]
    assert built["milliseconds"].keys() == {
        *("maps", "heads", "maps by torch-tensorrt", "heads by torch-tensorrt")
    }
    assert built["trunk"].endswith("by torch-tensorrt")
    _, plans = runtime_tensorrt.unpack(engine.blob)
    for plan in plans.values():
        facts, _ = fake_tensorrt.unpacked(plan)
        assert (facts["streams"], facts["tf32"], facts["most"][0]) == (0, False, LARGEST)
    with closing(open_engine(engine)) as runner, closing(open_engine(engine_for(bundle, "cpu"))) as cpu:
        pixels = tiny.pictures(4, seed=1)
        found, wanted = runner(pixels), cpu(pixels)
    np.testing.assert_allclose(found.reconstruction_loss, wanted.reconstruction_loss, rtol=ALIKE)
    another = Engine(**{**vars(engine), "bundle_hash": "0" * 64})
    with pytest.raises(Refused, match="its plan belongs to"):  # the input's name ties it to its bundle
        open_engine(another)


@pytest.mark.usefixtures("tensorrt")
def test_where_torch_tensorrt_fails_the_parsers_plans_remain(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> bytes:
        raise RuntimeError("Conversion of module is not currently fully supported")

    monkeypatch.setattr(fake_torch_tensorrt, "convert", fails)
    engine = by_torch_tensorrt(bundle, monkeypatch)
    assert engine.parity is not None
    assert "torch-tensorrt cannot build it (Conversion of module is not" in caplog.text


@pytest.mark.usefixtures("tensorrt")
def test_the_stand_in_has_the_names_of_the_stub_and_no_others() -> None:
    assert unknown_names("tensorrt") == []
    stub = (TYPING / "tensorrt" / "__init__.pyi").read_text()
    declared = {
        line.split()[1].split("(")[0].rstrip(":") for line in stub.splitlines() if line[:6] == "class "
    }
    assert set(fake_tensorrt.names()) == declared


# --- that the stand-ins refuse what would break on a card ----------------------------------------------


@pytest.mark.usefixtures("cuda")
def test_a_graph_computes_when_it_is_replayed_and_not_before() -> None:
    entry = torch.ones(3, device="cuda:0")
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        found = (entry + 1)[:2] * 2
    assert found.isnan().all()
    entry.fill_(4)
    graph.replay()
    assert found.tolist() == [10, 10]


@pytest.mark.usefixtures("cuda")
def test_a_graph_does_not_keep_the_memory_of_others() -> None:
    entry, graph = torch.ones(3, device="cuda:0"), torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        kept = entry + 1
    graph.replay()
    assert kept.tolist() == [2, 2, 2]
    del entry
    with pytest.raises(RuntimeError, match="a captured buffer is gone"):
        graph.replay()


@pytest.mark.usefixtures("tensorrt")
def test_a_context_may_be_captured_once_and_keeps_its_shape(bundle: Bundle) -> None:
    engine = build(bundle)
    model, plans = runtime_tensorrt.unpack(engine.blob)
    opened = runtime_tensorrt.open_plan(plans["bigan"], "bigan", engine)
    context = opened.create_execution_context()
    assert context is not None
    x, outputs = torch.ones(2, model.architecture.features, device="cuda:0"), list[torch.Tensor]()
    with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
        stream = torch.cuda.current_stream().cuda_stream
        assert context.set_input_shape("x", (2, 32))
        context.set_tensor_address("x", x.data_ptr())
        for name in runtime_tensorrt.PAIRS:
            sizes = context.get_tensor_shape(name)
            outputs.append(torch.empty([sizes[i] for i in range(len(sizes))], device="cuda:0"))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        with (
            pytest.raises(AssertionError, match="without a run before"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        assert context.execute_async_v3(stream)
        graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        for graph in graphs:
            with torch.cuda.graph(graph):
                assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        graphs[1].replay()
        with pytest.raises(RuntimeError, match="the context has changed"):
            graphs[0].replay()
        context.set_input_shape("x", (3, 32))
        with pytest.raises(RuntimeError, match="the context has changed"):
            graphs[1].replay()


@pytest.mark.usefixtures("tensorrt")
def test_the_record_says_what_was_chosen(bundle: Bundle, tmp_path: Path) -> None:
    build(bundle)
    (entry,) = (tmp_path / "gbad-batch").glob("*.engine")
    built = json.loads(entry.read_bytes().partition(b"\n")[0])["built"]
    assert built["milliseconds"].keys() == to_tensorrt.FORMS.keys()
