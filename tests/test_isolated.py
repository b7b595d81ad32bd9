"""Suspects decode in a child to the same pixels; its death or delay is a row, and the next image goes on."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import PATIENCE_S, children, runs

from gbad_batch.engine.decode import DecodeLimits, Decoder, isolated
from gbad_batch.engine.decode.isolated import IsolatedDecoder
from gbad_batch.engine.errors import Stopped
from gbad_batch.engine.row import Row

SIZE = 48


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 70, 3), np.uint8))


def slow_image() -> bytes:
    """Make a PNG that takes about a second to decode and is small on disk."""
    return saved(Image.new("RGB", (7_900, 7_900), "white"), "PNG", compress_level=1)


def decoders() -> list[int]:
    """Process ids of the decoders; other tests may have left workers of compilers here."""
    return [pid for pid in children(os.getpid()) if _is_decoder(pid)]


def _is_decoder(pid: int) -> bool:
    try:
        return isolated.__name__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def started(decode: IsolatedDecoder) -> int:
    """Decode one good image, and return the child's process id."""
    before = set(decoders())
    assert decode(Row("first"), saved(picture(), "PNG")) is not None
    (child,) = set(decoders()) - before
    return child


def test_rows_and_pixels_equal_those_of_the_decoder_in_this_process() -> None:
    damaged = bytearray(saved(picture(), "JPEG"))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 90] = b"\x5a" * 90
    blobs = [saved(picture(), form) for form in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "JPEG2000")]
    blobs += [bytes(damaged), b"", b"<html>", blobs[0][:-300], blobs[1][:99], saved(picture(), "GIF")]
    blobs.append(saved(Image.new("I;16", (SIZE, SIZE), 4_000), "PNG"))
    here = Decoder(SIZE, DecodeLimits())
    statuses = []
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as there:
        for blob in blobs:
            row, other = Row("x", bytes=len(blob)), Row("x", bytes=len(blob))
            pixels, same = here(row, blob), there(other, blob)
            assert row == other
            assert (pixels is None) == (same is None)
            if pixels is not None and same is not None:
                assert np.array_equal(pixels, same)
                assert same.dtype == np.uint8
            statuses.append(row.status)
    assert set(statuses) == {"ok", "empty", "not_an_image", "truncated", "unsupported"}


def test_a_child_that_dies_while_decoding_is_a_row_and_the_next_image_decodes() -> None:
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=120) as decode:
        child, row = started(decode), Row("suspect")
        blob = slow_image()
        working = threading.Thread(target=decode, args=(row, blob))
        working.start()
        time.sleep(0.2)
        os.kill(child, signal.SIGSEGV)
        working.join(60)
        assert row.status == "decoder_crash"
        assert row.error == "the decoder was ended by signal SIGSEGV"
        assert decode(Row("next"), saved(picture(), "PNG")) is not None
        assert child not in decoders()


def test_a_child_that_is_killed_is_asked_again_and_then_stops_the_scan() -> None:
    """SIGKILL comes from the system, as where memory ends, never from the image."""
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=120) as decode, ThreadPoolExecutor(1) as pool:
        first = started(decode)
        once = pool.submit(decode, Row("once"), slow_image())
        time.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        assert once.result(60) is not None
        row, killed = Row("twice"), set[int]()
        twice = pool.submit(decode, row, slow_image())
        while len(killed) < 2 and not twice.done():
            time.sleep(0.2)
            for child in set(decoders()) - killed:
                os.kill(child, signal.SIGKILL)
                killed.add(child)
        # on a slow machine the second kill meets a child that still starts
        with pytest.raises(Stopped, match=r"killed twice|does not start \(ended by signal SIGKILL\)"):
            twice.result(60)
        assert row.status is None


def test_a_crash_under_a_low_limit_on_memory_is_not_laid_at_the_images_door() -> None:
    script = (
        "import os, resource, signal, sys, threading, time\n"
        "from gbad_batch.engine.decode.isolated import *\n"
        "from gbad_batch.engine.errors import Stopped\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        f"decode = IsolatedDecoder({SIZE}, DecodeLimits(), 60)\n"
        "blob = sys.stdin.buffer.read(); row = Row('x')\n"
        "decode(row, blob)\n"
        "threading.Timer(0.2, lambda: os.kill(decode._child.pid, signal.SIGSEGV)).start()\n"
        "try: decode(row, blob)\n"
        "except Stopped as error: print(error)\n"
        "decode.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=slow_image(), capture_output=True, check=True)
    assert b"with 3072 MB for each process (ulimit -v) nobody can tell" in done.stdout


def test_a_child_that_died_between_two_images_harms_none() -> None:
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode:
        os.kill(started(decode), signal.SIGKILL)
        row = Row("next")
        while row.status != "ok":  # the very next call may still meet the dying child
            assert decode(row, saved(picture(), "PNG")) is not None or row.status == "decoder_crash"


def test_an_image_over_the_time_limit_is_a_row_and_its_child_is_gone() -> None:
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode:
        child, row = started(decode), Row("slow")
        decode.timeout_s = 0.05
        assert decode(row, slow_image()) is None
        assert row.status == "decoder_timeout"
        assert row.error == "the image was not decoded within 0.05 s of CPU time"
        assert child not in decoders()
        decode.timeout_s = 60
        assert decode(Row("again"), slow_image()) is not None


def test_time_that_a_child_does_not_get_is_not_the_images() -> None:
    """Stopped for four times its limit, as on a busy machine, it decodes the image all the same."""
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode, ThreadPoolExecutor(1) as pool:
        child, row = started(decode), Row("waiting")
        decode.timeout_s = 0.5
        os.kill(child, signal.SIGSTOP)
        answer = pool.submit(decode, row, saved(picture(), "PNG"))
        time.sleep(4 * decode.timeout_s)
        os.kill(child, signal.SIGCONT)
        assert answer.result(PATIENCE_S) is not None
        assert row.status == "ok"


def test_a_child_that_does_nothing_is_ended_by_the_clock() -> None:
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode:
        child, row = started(decode), Row("waiting")
        decode.timeout_s = 0.1
        os.kill(child, signal.SIGSTOP)
        assert decode(row, saved(picture(), "PNG")) is None
        assert (row.status, row.error) == ("decoder_timeout", "the image was not decoded within 1 s")
        assert child not in decoders()


def test_no_child_is_left_behind() -> None:
    before = set(decoders())
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode:
        child = started(decode)
    assert set(decoders()) == before
    assert not Path(f"/proc/{child}").exists()


def test_the_child_ends_when_its_parent_is_killed() -> None:
    script = (
        "import sys; from gbad_batch.engine.decode.isolated import *\n"
        f"decode = IsolatedDecoder({SIZE}, DecodeLimits(), 60); row = Row('x')\n"
        "decode(row, sys.stdin.buffer.read()); print(row.status, decode._child.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=saved(picture(), "PNG"), capture_output=True)
    status, child = done.stdout.split()
    assert (done.returncode, status) == (-signal.SIGKILL, b"ok")
    deadline = time.monotonic() + PATIENCE_S
    while runs(int(child)):  # dead is enough: whoever adopted it may not have looked yet
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_that_does_not_start_stops_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode,
        pytest.raises(Stopped, match="exit code 1"),
    ):
        decode(Row("x"), saved(picture(), "PNG"))


def test_modules_of_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with IsolatedDecoder(SIZE, DecodeLimits(), timeout_s=60) as decode:
        assert decode(Row("x"), saved(picture(), "PNG")) is not None
