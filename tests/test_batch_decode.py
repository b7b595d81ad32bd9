"""Decoding a batch at a time: the GPU's graph by DALI's CPU operators, and on a GPU where one is here."""

import hashlib
import io
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from processes import children, cpu_seconds

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.decode import DecodeLimits, Decoder, batch, device
from gbad_batch.engine.decode.batch import BatchDecoder
from gbad_batch.engine.decode.coded_image import CodedImage
from gbad_batch.engine.errors import DeviceLost
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import EngineFailed, Outputs, Runner, open_engine
from gbad_batch.engine.settings import SourceSettings
from gbad_batch.engine.sources import ListingCounts, find
from gbad_batch.engine.stages import Batch, InFlight, Stages, scorer
from gbad_batch.engine.stages.readers import Readers, ReaderSettings
from gbad_batch.engine.stages.scorer import Scorer
from gbad_batch.export import engine_for

SIZE, MOST = 48, 4
# levels by which pixels may differ from the scan's on the CPU: mean, largest, largest on the outermost lines
CPU, GPU = (0.3, 2, 16), (1.0, 12, 24)
GPU_AGAIN = 2  # between two ways of decoding on a GPU

Pixels = NDArray[np.uint8]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> int | None:
    """Give the number of the GPU, None for CPU operators."""
    if request.param == "cpu":
        return None
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    return 0


@pytest.fixture
def decode(gpu: int | None) -> BatchDecoder:
    return BatchDecoder(Decoder(SIZE, DecodeLimits()), gpu, MOST, threads=2, hardware_share=0.65)


@pytest.fixture(scope="module")
def alone() -> Decoder:
    return Decoder(SIZE, DecodeLimits())


def bag(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def saved(picture: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def jpegs(count: int, first: int = 0) -> list[bytes]:
    return [saved(bag(i, (60 + 7 * i, 110 - 5 * i)), quality=92) for i in range(first, first + count)]


def without_tables(blob: bytes) -> bytes:
    """Break the first Huffman table: header and end are whole, and no decoder reads the picture."""
    at = blob.index(b"\xff\xc4") + 5
    return blob[:at] + b"\xff" * 16 + blob[at + 16 :]


def decoded(decode: BatchDecoder, blobs: Sequence[bytes]) -> tuple[list[Row], list[Row], Pixels]:
    """Decode files as a scan does; returns all rows, those with pixels, and the pixels, on the host."""
    rows = [Row(str(i), sha256=hashlib.sha256(blob).digest()) for i, blob in enumerate(blobs)]
    images = [decode(row, blob) for row, blob in zip(rows, blobs, strict=True)]
    waiting = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
    kept, pixels = decode.decode(
        decode.assemble([row for row, _ in waiting], [image for _, image in waiting])
    )
    return rows, kept, pixels.cpu().numpy() if hasattr(pixels, "cpu") else pixels


def one(alone: Decoder, blob: bytes) -> tuple[Row, Any]:
    """Decode a file as a scan on the CPU does; the pixels are None where it is bad."""
    row = Row("0", sha256=hashlib.sha256(blob).digest())
    return row, alone(row, blob)


def assert_alike(found: Pixels, wanted: Pixels, gpu: int | None) -> None:
    mean, inside, rim = CPU if gpu is None else GPU
    levels = np.abs(found.astype(int) - wanted)
    assert levels.mean() <= mean
    assert levels[1:-1, 1:-1].max() <= inside
    assert levels.max() <= rim


def fields(row: Row) -> tuple[Any, ...]:
    return tuple(
        getattr(row, name)
        for name in ("sha256", "format", "width", "height", "bit_depth", "color", "status", "error")
    )


# --- pixels -------------------------------------------------------------------------------------------

TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"

KINDS: dict[str, Callable[[], bytes]] = {
    "baseline 4:2:0": lambda: saved(bag(1), subsampling=2),
    "4:2:2": lambda: saved(bag(2), subsampling=1),
    "4:4:4": lambda: saved(bag(3), subsampling=0),
    "4:4:0": lambda: simplejpeg.encode_jpeg(np.asarray(bag(4)), colorsubsampling="440"),
    "progressive": lambda: saved(bag(5), progressive=True),
    "gray": lambda: saved(bag(6).convert("L")),
    "restart markers": lambda: saved(bag(7), restart_marker_blocks=2),
    "turned by EXIF": lambda: saved(
        bag(8), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    ),
    "large": lambda: saved(bag(9, (900, 700))),
    "small": lambda: saved(bag(10, (20, 31))),
    "of the input size": lambda: saved(bag(11, (SIZE, SIZE))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_are_decoded_together_to_the_scans_pixels(
    decode: BatchDecoder, alone: Decoder, gpu: int | None, kind: str
) -> None:
    blob = KINDS[kind]()
    assert isinstance(decode(Row("0"), blob), CodedImage)
    (row,), (kept,), (pixels,) = decoded(decode, [blob])
    wanted_row, wanted = one(alone, blob)
    assert kept is row
    assert row == wanted_row
    assert (pixels.dtype, pixels.shape) == (np.uint8, (SIZE, SIZE, 3))
    assert_alike(pixels, wanted, gpu)
    if kind == "of the input size" and gpu is None:
        assert np.array_equal(pixels, wanted)


def cmyk() -> bytes:
    return saved(bag(1).convert("CMYK"))


def coded_as_rgb() -> bytes:
    """Write a JPEG whose Adobe marker says that its components are RGB."""
    return saved(bag(2), keep_rgb=True)


def without_last_scans() -> bytes:
    blob = saved(bag(6), progressive=True)
    return blob[: blob.index(b"\xff\xda", blob.index(b"\xff\xda") + 2)] + b"\xff\xd9"


OTHERS: dict[str, Callable[[], bytes]] = {
    "progressive without its last scans": without_last_scans,
    "CMYK": cmyk,
    "RGB without YCbCr": coded_as_rgb,
    "4:1:1": lambda: simplejpeg.encode_jpeg(np.asarray(bag(3)), colorsubsampling="411"),
    **{form: lambda form=form: saved(bag(4), form) for form in ("PNG", "TIFF", "WEBP", "BMP", "JPEG2000")},
    "16 bits": lambda: saved(Image.fromarray(np.asarray(bag(5))[..., 0].astype(np.uint16) * 257), "PNG"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_everything_else_is_decoded_on_the_cpu_whatever_its_batch(
    decode: BatchDecoder, alone: Decoder, kind: str
) -> None:
    blob = OTHERS[kind]()
    image, (row, wanted) = decode(Row("0"), blob), one(alone, blob)
    assert row.status == "ok"
    assert isinstance(image, np.ndarray)
    assert np.array_equal(image, wanted)
    found, _, pixels = decoded(decode, [*jpegs(2), blob, *jpegs(1, first=3)])
    assert np.array_equal(pixels[2], wanted)
    assert fields(found[2]) == fields(row)


def test_what_is_large_is_not_decoded_together(
    decode: BatchDecoder, alone: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = jpegs(1)[0]
    for name, value in (("LARGEST_PIXELS", 60 * 110 - 1), ("LARGEST_BYTES", len(blob) - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(batch, name, value)
            image = decode(Row("0"), blob)
            assert isinstance(image, np.ndarray)
            assert np.array_equal(image, one(alone, blob)[1])


def test_no_more_is_decoded_at_once_than_memory_allows(
    decode: BatchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, wanted = decoded(decode, jpegs(3))
    monkeypatch.setattr(batch, "BATCH_PIXELS", 1)
    _, kept, pixels = decoded(decode, jpegs(3))
    assert [row.uri for row in kept] == ["0", "1", "2"]
    assert np.array_equal(pixels, wanted)


# --- batches ------------------------------------------------------------------------------------------


def bad_files() -> list[bytes]:
    """Files that the gate lets through, and one that it does not."""
    whole = jpegs(1, first=6)[0]
    return [
        without_tables(whole),
        whole[: len(whole) * 2 // 3] + b"\xff\xd9",  # cut, with an end marker of its own
        whole[:-300],
        without_tables(saved(bag(3), progressive=True)),
    ]


@pytest.mark.parametrize("places", [(0,), (3,), (1, 2), (0, 2, 3), (0, 1, 2, 3)])
def test_a_bad_image_changes_no_other(
    decode: BatchDecoder, alone: Decoder, gpu: int | None, places: tuple[int, ...]
) -> None:
    good, bad = jpegs(MOST), bad_files()
    _, _, clean = decoded(decode, good)
    mixed = [bad[i] if i in places else blob for i, blob in enumerate(good)]
    rows, kept, pixels = decoded(decode, mixed)
    wanted = [one(alone, blob)[0] for blob in mixed]
    assert [fields(row) for row in rows] == [fields(row) for row in wanted]
    assert kept == [row for row in rows if row.status == "ok"]
    found = {row.uri: image for row, image in zip(kept, pixels, strict=True)}
    for i in set(range(MOST)).difference(places):
        levels = np.abs(found[str(i)].astype(int) - clean[i])
        assert levels.max() <= (0 if gpu is None else GPU_AGAIN)
    _, _, after = decoded(decode, good)
    assert np.array_equal(after, clean)


def test_order_and_rows_hold_over_many_batches(decode: BatchDecoder, alone: Decoder, gpu: int | None) -> None:
    """More images than a graph takes, among them other formats, bad ones, and no image at all."""
    blobs = [*jpegs(7), saved(bag(1), "PNG"), without_tables(jpegs(1)[0]), *jpegs(4, first=7), b"", cmyk()]
    order = np.random.default_rng(5).permutation(len(blobs))
    rows, kept, pixels = decoded(decode, [blobs[i] for i in order])
    assert [int(row.uri) for row in kept] == [k for k, i in enumerate(order) if blobs[i] and i != 8]
    assert [row.status for row in rows if row not in kept] == [
        "empty" if not blobs[i] else "undecodable" for i in order if not blobs[i] or i == 8
    ]
    for row, image in zip(kept, pixels, strict=True):
        assert_alike(image, one(alone, blobs[order[int(row.uri)]])[1], gpu)


def test_batches_of_one_of_none_and_of_bad_images_alone(decode: BatchDecoder) -> None:
    _, _, clean = decoded(decode, jpegs(1))
    for blobs in ([], [without_tables(jpegs(1)[0])] * 2, [b"<html>"], [saved(bag(1), "PNG")]):
        rows, kept, pixels = decoded(decode, blobs)
        assert len(kept) == len(pixels) == sum(row.status == "ok" for row in rows)
    _, _, again = decoded(decode, jpegs(1))
    assert np.array_equal(again, clean)


def test_where_many_batches_fail_dali_is_not_asked_first(
    decode: BatchDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger=device.__name__)
    most = int(device.MOST_FAILED * device.RECENT)
    bad, good = [without_tables(jpegs(1)[0]), *jpegs(1)], jpegs(2)
    _, _, clean = decoded(decode, good)
    for _ in range(most + 4):
        decoded(decode, bad)
    assert len(caplog.records) == most + 1
    for _ in range(device.RECENT):  # asked again only when the failures are of long ago
        _, _, pixels = decoded(decode, good)
        assert np.abs(pixels.astype(int) - clean).max() <= GPU_AGAIN
    decoded(decode, bad)
    assert len(caplog.records) == most + 2


def test_where_nvimagecodec_decodes_nothing_dali_is_asked_again(
    decode: BatchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may fail as a whole, which says nothing of DALI."""
    on_device, asked = decode._decode, list[int]()
    dali: Any = on_device._decode

    def counted(blobs: Sequence[Any], ids: Sequence[int]) -> Any:
        asked.append(len(blobs))
        return dali(blobs, ids)

    monkeypatch.setattr(on_device, "_per_image", lambda coded, _: [None] * len(coded))
    monkeypatch.setattr(on_device, "_decode", counted)
    for _ in range(int(device.MOST_FAILED * device.RECENT) + 1):
        decoded(decode, [without_tables(jpegs(1)[0])])
    asked.clear()
    for _ in range(device.RECENT):
        decoded(decode, jpegs(1))
    assert asked


def test_what_looks_left_out_is_decoded_once_more(decode: BatchDecoder, alone: Decoder) -> None:
    """The JPEG hardware may skip an image without a word: then one colour is there, or another bag."""
    blob = saved(bag(2, (300, 200)))
    copy = blob[:2] + b"\xff\xfe\0\x06copy" + blob[2:]
    plain = saved(Image.new("RGB", (80, 60), "white"))
    _, _, pixels = decoded(decode, [blob, copy, plain, blob])
    wanted = [one(alone, each)[1] for each in (blob, copy, plain)]
    assert not np.array_equal(pixels[0], wanted[0])  # DALI's filter differs at the edge
    assert np.array_equal(pixels[1], wanted[1])
    assert np.array_equal(pixels[2], wanted[2])
    assert np.array_equal(pixels[3], pixels[0])  # the same file twice is no doubt


# --- the graph ----------------------------------------------------------------------------------------


def test_the_graph_decodes_whole_images_alone(gpu: int | None) -> None:
    """Decoding of a part of an image is known to crash."""
    from gbad_batch.engine.decode.dali_graph import GraphSettings, define

    form, options = (
        GraphSettings(SIZE, MOST, 1, gpu, 0.5),
        {"batch_size": MOST, "num_threads": 1, "device_id": gpu},
    )
    graphs = [define(form, encoded, **options).serialize() for encoded in (True, False)]
    found = re.findall(rb"decoders__\w+|slice|crop|roi", b"".join(graphs), re.IGNORECASE)
    assert set(found) == {b"decoders__Image"}


@pytest.mark.parametrize("encoded", [True, False])
def test_dali_has_every_operator_of_the_gpus_graph(encoded: bool) -> None:
    """As it was built for a GPU, whether one is here or not."""
    from nvidia.dali import backend

    from gbad_batch.engine.decode.dali_graph import GraphSettings, define

    registered = {
        "cpu": set(backend.RegisteredCPUOps()),  # pyright: ignore
        "gpu": set(backend.RegisteredGPUOps()),  # pyright: ignore
        "mixed": set(backend.RegisteredMixedOps()),  # pyright: ignore
    }
    options: dict[str, Any] = {"batch_size": MOST, "num_threads": 1, "device_id": 0}
    graph: Any = define(GraphSettings(SIZE, MOST, 1, 0, 0.5), encoded, **options)
    graph._build_graph()
    used = set[tuple[str, str]]()
    for each in graph._ops:
        (name,), (where,) = (
            re.findall(form, str(each.spec)) for form in (r"^OpSpec for (\w+)", r" device: (\w+)")
        )
        used.add((where, name))
    assert [(where, name) for where, name in used if name not in registered[where]] == []
    assert {("gpu", "Resize"), ("gpu", "reductions__Sum")} <= used
    assert (("mixed", "decoders__Image") in used) == encoded
    assert "Resize" not in {name for where, name in used if where != "gpu"}


def test_what_is_fed_is_not_copied(gpu: int | None) -> None:
    """The bytes of another image, written after feeding and before the run, are what is decoded."""
    from gbad_batch.engine.decode.dali_graph import GraphSettings, define

    options = {"batch_size": 1, "num_threads": 1, "device_id": gpu, "prefetch_queue_depth": 1}
    pipeline = define(GraphSettings(SIZE, 1, 1, gpu, 0.5), True, **options)
    pipeline.build()
    first, second = (np.frombuffer(blob, np.uint8) for blob in jpegs(2))
    fed = np.resize(first, max(len(first), len(second)))
    pipeline.feed_input("images", [fed])
    pipeline.feed_input("ids", [np.zeros(1, np.int64)])
    fed[: len(second)] = second
    found: Any = pipeline.run()
    pipeline.feed_input("images", [second])
    pipeline.feed_input("ids", [np.zeros(1, np.int64)])
    wanted: Any = pipeline.run()
    for one, other in zip(found[2:], wanted[2:], strict=True):  # fingerprints
        assert np.array_equal(one.as_array(), other.as_array())


class Unnoted:
    """Notes nothing of what is in flight."""

    def begin(self, key: bytes) -> None: ...

    def begin_all(self, keys: Sequence[bytes]) -> None: ...

    def end(self) -> None: ...


def test_the_next_chunk_is_assembled_while_one_is_decoded(tmp_path: Path) -> None:
    """Two threads of a worker: the second is ready to decode before the first has finished."""
    from gbad_batch.engine.stages.gpu import BatchDecode

    plain = BatchDecoder(Decoder(SIZE, DecodeLimits()), None, MOST, threads=1, hardware_share=0.5)
    assembled, seen = threading.Semaphore(0), list[bool]()

    class Watched:
        def assemble(self, rows: Sequence[Row], images: Sequence[Any]) -> Any:
            made = plain.assemble(rows, images)
            assembled.release()
            return made

        def decode(self, made: Any) -> tuple[list[Row], Any]:
            if not seen:
                seen.append(all(assembled.acquire(timeout=60) for _ in range(2)))
            return plain.decode(made)

    stage = BatchDecode(Watched(), threading.Lock())  # type: ignore[arg-type]
    for number, blob in enumerate(jpegs(4)):
        (tmp_path / f"{number}.jpg").write_bytes(blob)
    candidates = list(find(SourceSettings((tmp_path,)), ListingCounts(), lambda _: True))
    chunks = [Batch(candidates[:2]), Batch(candidates[2:])]
    for each in chunks:
        each.contents = [plain(row, Path(row.uri).read_bytes()) for row in each.rows]
    threads = [threading.Thread(target=stage, args=(each, Unnoted())) for each in chunks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True]
    assert [[row.status for row in each.images] for each in chunks] == [["ok", "ok"]] * 2


def test_a_graph_goes_on_after_a_bad_image_and_takes_no_empty_batch(gpu: int | None) -> None:
    from gbad_batch.engine.decode.dali_graph import DaliGraph, GraphSettings

    graph = DaliGraph(GraphSettings(SIZE, MOST, 1, gpu, 0.5), encoded=True)
    good = [np.frombuffer(blob, np.uint8) for blob in jpegs(3)]
    bad = np.frombuffer(without_tables(jpegs(1)[0]), np.uint8)
    wanted = graph(good, [7, 8, 9])
    for _ in range(3):
        with pytest.raises(RuntimeError, match="decode"):
            graph([good[0], bad], [1, 2])
        for images, ids in (([], []), (good, [1]), (good * 2, [*range(6)])):
            with pytest.raises(ValueError, match="do not make a batch"):
                graph(images, ids)
        found = graph(good[1:], [4, 5])
        assert found.ids == [4, 5]
        assert found.fingerprints == wanted.fingerprints[1:]


# --- scans --------------------------------------------------------------------------------------------


def open_graph_stages(settings: ScanSettings) -> Stages:
    """Open stages that read and decode as for a GPU, by DALI's CPU operators."""
    from gbad_batch.engine.stages.gpu import open_reading_and_decoding

    with ExitStack() as stack:
        score = stack.enter_context(Scorer(settings))
        limits = DecodeLimits(settings.max_pixels, settings.max_file_size)
        read, decode = open_reading_and_decoding(settings, score, limits, None, stack)
        setup = replace(score.setup(), devices=("cpu",))  # a worker that notes whole batches
        return Stages(setup, read, decode, score, stack.pop_all().close)


def open_losing_stages(settings: ScanSettings) -> Stages:
    """Open stages whose GPU is lost at their second whole batch, in the first two workers of a scan.

    An idle worker gets what is listed already, which on a busy machine may be less than a batch.
    """
    stages = open_graph_stages(settings)
    decode, batches = stages.decode, iter(range(1000))
    losses = Path(settings.cache_dir or ".") / "losses"

    def losing(batch: Batch, in_flight: InFlight) -> None:
        lost = len(losses.read_bytes()) if losses.exists() else 0
        if len(batch.candidates) == MOST and next(batches) == 1 and lost < 2:
            losses.write_bytes(bytes(lost + 1))
            in_flight.begin_all([each.key for each in batch.candidates])
            raise DeviceLost("the GPU failed")
        decode(batch, in_flight)

    stages.decode = losing
    return stages


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Write images of several formats, some of them bad, and a file that is no image."""
    root = tmp_path / "archive"
    root.mkdir()
    blobs = [*jpegs(9), *bad_files(), saved(bag(1), "PNG"), saved(bag(2), "TIFF"), cmyk(), b"no image"]
    for i in np.random.default_rng(1).permutation(len(blobs)):
        (root / f"bag{i:02d}.{'txt.jpg' if i == len(blobs) - 1 else 'jpg'}").write_bytes(blobs[i])
    return root


def rows_of(scan: Scan) -> list[Row]:
    return sorted(scan.rows(), key=lambda row: row.uri)


def test_a_scan_gives_the_rows_of_a_scan_on_the_cpu(archive: Path, tiny_bundle: Bundle) -> None:
    settings = ScanSettings(sources=(str(archive),), model=tiny_bundle.path, batch_size=MOST, threads=2)
    plain, found = rows_of(Scan(settings)), rows_of(Scan(settings, open_graph_stages))
    assert [(row.uri, row.offset, row.sha256, *fields(row)) for row in found] == [
        (row.uri, row.offset, row.sha256, *fields(row)) for row in plain
    ]
    for row, wanted in zip(found, plain, strict=True):
        if row.status == "ok":
            assert row.reconstruction_loss == pytest.approx(wanted.reconstruction_loss, rel=0.05)


def test_a_lost_gpu_leaves_its_images_to_be_decoded_apart(
    archive: Path, tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    settings = ScanSettings(
        sources=(str(archive),),
        out=tmp_path / "r.parquet",
        model=tiny_bundle.path,
        cache_dir=tmp_path / "cache",
        batch_size=MOST,
        threads=2,
    )
    summary = Scan(settings, open_losing_stages).run()
    wanted = rows_of(Scan(settings))
    assert caplog.text.count("the GPU failed") == 2
    assert f"the {MOST} images that were in decoders are decoded apart" in caplog.text
    assert summary.images == len(wanted)
    assert summary.ok == sum(row.status == "ok" for row in wanted)


class _FailsOnce:
    """An engine that fails on its first batch."""

    def __init__(self, runner: Runner):
        self._runner = runner
        self._failed = False

    def __call__(self, pixels: Pixels) -> Outputs:
        if self._failed:
            return self._runner(pixels)
        self._failed = True
        raise EngineFailed("the engine failed", (0,))

    def close(self) -> None:
        self._runner.close()


def test_decoding_waits_while_a_second_engine_is_opened(
    archive: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI may synchronize the whole GPU, which breaks the capture of the engine's CUDA graphs."""
    notes: Any = SimpleNamespace(begin_all=lambda _: None, end=lambda: None)
    candidates = list(find(SourceSettings((archive,)), ListingCounts(), lambda _: True))[:2]
    for number, candidate in enumerate(candidates):
        candidate.key = bytes([number]) * 16
    settings = ScanSettings(sources=(str(archive),), model=tiny_bundle.path, batch_size=MOST, threads=2)
    with open_graph_stages(settings) as stages:
        batch, waited = Batch(candidates), list[bool]()
        stages.read(batch)
        decoding = threading.Thread(target=stages.decode, args=(batch, notes))

        def opened(*arguments: Any) -> Runner:
            if not waited:
                decoding.start()
            decoding.join(1.0)
            waited.append(decoding.is_alive())
            return open_engine(*arguments)

        monkeypatch.setattr(scorer, "open_engine", opened)
        monkeypatch.setattr(stages.score, "runner", _FailsOnce(stages.score.runner))  # pyright: ignore
        rows = [Row("0")]
        stages.score(rows, np.full((1, 64, 64, 3), 200, np.uint8))
        decoding.join()
    assert waited == [True, True]  # a second engine scores a gray image, then this one
    assert rows[0].anomaly_score is not None
    assert batch.pixels is not None


def test_a_reader_that_dies_is_replaced_and_its_image_is_decoded_apart(tmp_path: Path) -> None:
    """The reader of a GPU's worker decodes on the CPU what the GPU does not, and may die of it."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)).save(
        tmp_path / "slow.jp2", irreversible=False
    )
    (tmp_path / "bag.jpg").write_bytes(jpegs(1)[0])
    candidates = list(find(SourceSettings((tmp_path,)), ListingCounts(), lambda _: True))
    for number, candidate in enumerate(candidates):
        candidate.key = bytes([number]) * 16
    before = set(children(os.getpid()))
    with Readers(ReaderSettings(SIZE, DecodeLimits(), 600.0), 1) as readers:
        (reader,) = set(children(os.getpid())) - before
        batch = Batch(candidates)
        thread = threading.Thread(target=readers, args=(batch,))
        thread.start()
        while not cpu_seconds(reader) > 1.0:  # it is in the slow image
            time.sleep(0.05)
        os.kill(reader, signal.SIGSEGV)
        thread.join()
        assert [row.status for row in batch.rows] == [None, "ok"]
        assert [type(content).__name__ for content in batch.contents] == ["CodedImage", "ndarray"]
        assert bytes(batch.contents[0].data) == (tmp_path / "bag.jpg").read_bytes()
        batch.release()


# --- on a GPU alone -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_pixels_that_are_on_the_gpu_score_as_those_from_the_host(gpu: int, tmp_path: Path) -> None:
    import torch
    import torch_bundle

    from gbad_batch.engine.bundle import write_bundle

    bundle = write_bundle(tmp_path / "small", torch_bundle.manifest(), torch_bundle.files())
    pixels = np.stack([np.asarray(bag(i, (64, 64))) for i in range(300)])  # more than the largest graph holds
    with closing(open_engine(engine_for(bundle, device=f"cuda:{gpu}"))) as runner:
        host, there = runner(pixels), runner(torch.from_numpy(pixels).cuda(gpu))
        assert np.array_equal(host.x, there.x)
        with pytest.raises(ValueError, match="must be uint8"):
            runner(torch.from_numpy(pixels).cuda(gpu).half())


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_the_hardware_writes_into_nothing_that_is_still_read(gpu: int) -> None:
    """As in pytorch/vision#9606: a slow reader of a batch is queued, then the next batch is decoded."""
    import torch

    decode = BatchDecoder(Decoder(256, DecodeLimits()), gpu, 64, threads=4, hardware_share=1.0)
    sets = [[saved(bag(i + 64 * k, (700, 500)), quality=92) for i in range(64)] for k in range(2)]
    wanted = [torch.from_numpy(decoded(decode, blobs)[2]).cuda(gpu) for blobs in sets]
    reader, differences, held = torch.cuda.Stream(gpu), [], None
    for step in range(100):
        rows = [Row(str(i)) for i in range(64)]
        images = [decode(row, blob) for row, blob in zip(rows, sets[step % 2], strict=True)]
        kept, pixels = decode.decode(decode.assemble(rows, [image for image in images if image is not None]))
        assert len(kept) == 64
        reader.synchronize()  # as a lane does before it gives up what it has read
        held = pixels
        with torch.cuda.stream(reader):
            torch.cuda._sleep(20_000_000)  # cycles: about ten milliseconds
            differences.append((held.short() - wanted[step % 2].short()).abs().amax())
    reader.synchronize()
    assert max(each.item() for each in differences) <= GPU_AGAIN


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_gray_jpegs_by_the_hundred(decode: BatchDecoder, alone: Decoder, gpu: int) -> None:
    """Which crash with an output type of ANY_DATA."""
    blobs = [saved(bag(i, (200 + i, 150)).convert("L")) for i in range(MOST)]
    wanted = [one(alone, blob)[1] for blob in blobs]
    for _ in range(50):
        for image, reference in zip(decoded(decode, blobs)[2], wanted, strict=True):
            assert_alike(image, reference, gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_hardwares_share_changes_little(alone: Decoder, gpu: int, share: float) -> None:
    decode = BatchDecoder(Decoder(SIZE, DecodeLimits()), gpu, 8, threads=2, hardware_share=share)
    _, _, pixels = decoded(decode, jpegs(8))
    for blob, image in zip(jpegs(8), pixels, strict=True):
        assert_alike(image, one(alone, blob)[1], gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", ["cuda"], indirect=True)
def test_a_scan_on_a_gpu_gives_the_rows_of_a_scan_on_the_cpu(archive: Path, tmp_path: Path, gpu: int) -> None:
    import torch_bundle

    from gbad_batch.engine.bundle import write_bundle

    bundle = write_bundle(tmp_path / "small", torch_bundle.manifest(), torch_bundle.files())
    sources = (str(archive),)
    plain = rows_of(Scan(ScanSettings(sources=sources, model=bundle.path, device="cpu")))
    found = rows_of(
        Scan(ScanSettings(sources=sources, model=bundle.path, device=f"cuda:{gpu}", batch_size=MOST))
    )
    assert [(row.uri, *fields(row)) for row in found] == [(row.uri, *fields(row)) for row in plain]
    for row, wanted in zip(found, plain, strict=True):
        if row.status == "ok":
            assert row.reconstruction_loss == pytest.approx(wanted.reconstruction_loss, rel=0.05)
