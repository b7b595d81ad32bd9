"""nvImageCodec's libraries and failures: which are loaded where a GPU's codecs work, and what is told."""

import io
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder, batch, decoder, device, native
from gbad_batch.engine.decode.batch import BatchDecoder
from gbad_batch.engine.decode.host_memory import HostMemory
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import Row
from gbad_batch.engine.sources import faults

# As on a machine with a driver, which is all that a machine without a GPU lacks. DALI loads nvJPEG by
# nvImageCodec, and what that has missed once stays missing.
WITH_A_DRIVER = """
from pathlib import Path
from gbad_batch.engine.decode import DecodeLimits, Decoder, native
native._gpu_codecs_work = lambda: True
from gbad_batch.engine.decode.batch import BatchDecoder
BatchDecoder(Decoder(48, DecodeLimits()), None, 4, threads=1, hardware_share=0.5)
libraries = {Path(line.split()[-1]).name.partition(".")[0] for line in open("/proc/self/maps")}
print(native.nvjpeg_is_loaded(), *sorted(libraries & {"libnvjpeg", "libnvjpeg2k", "libnvtiff"}))
"""


def test_where_a_gpus_codecs_work_their_libraries_are_loaded() -> None:
    command = [sys.executable, "-c", WITH_A_DRIVER]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "libnvjpeg", "libnvjpeg2k", "libnvtiff"], ran.stderr
    assert "Failed to load nv" not in ran.stderr


def test_a_gpu_is_refused_where_nvjpeg_could_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU would decode instead, at a fraction of the speed. In this process it is not loaded."""
    decode = Decoder(48, DecodeLimits())
    assert not native.nvjpeg_is_loaded()
    monkeypatch.setattr(batch, "_memory", lambda _: HostMemory())
    monkeypatch.setattr(device, "DeviceDecoder", lambda *_: None)
    with pytest.raises(Refused, match=r"nvJPEG could not be loaded, .* what cuda:0 is to decode"):
        BatchDecoder(decode, 0, 4, threads=1, hardware_share=0.5)


IMPOSSIBLE = -5  # threads, which nvImageCodec takes for a number that no memory holds


def test_why_nvimagecodec_makes_no_decoder_is_told() -> None:
    with pytest.raises(OSError, match=r"nvImageCodec makes no decoder: .*Code: 8 \(internal error\)"):
        native.cpu_decoder(IMPOSSIBLE)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("Could not create decoder. Code: 5", MemoryError, "Code: 5"),
        ("Could not create decoder. Code: 6", native.NoDecoder, r"Code: 6 \(execution failed\)"),
        ("no such device", native.NoDecoder, "on cuda:7: no such device"),
    ],
)
def test_only_a_failed_allocation_is_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception], told: str
) -> None:
    def refuses(**_: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(native.nvimagecodec(), "Decoder", refuses)
    with pytest.raises(kind, match=told):
        native.gpu_decoder(7, 1, 0.5)


def test_an_image_for_which_no_decoder_can_be_made_is_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is memory short: the scan stops, and says why."""
    monkeypatch.setattr(faults, "DELAYS_S", ())
    monkeypatch.setattr(decoder, "cpu_decoder", lambda _: native.cpu_decoder(IMPOSSIBLE))
    file, row = io.BytesIO(), Row("bag.png")
    Image.new("RGB", (60, 50), "white").save(file, "PNG")
    with pytest.raises(native.NoDecoder, match="nvImageCodec makes no decoder"):
        Decoder(48, DecodeLimits())(row, file.getvalue())
    assert row.status is None
