"""Which GPUs are seen and which engines are taken for them, shown without a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_bundle
from torch._subclasses.fake_tensor import FakeTensorMode

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.runtime import runtime_inductor
from gbad_batch.export import choice, nvidia_gpus, resolve

# The driver's management library of a machine with one GPU, as far as it is asked.
NVML = """
#include <string.h>
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "H100", length); return 0; }
"""
ASKS = """
import logging, sys
from pathlib import Path
from gbad_batch.engine.bundle import Bundle
from gbad_batch.export import nvidia_gpus, resolve
logging.basicConfig(format="%(message)s")
print(nvidia_gpus(), resolve(Bundle.read(Path(sys.argv[1])), "auto", "auto", "auto").device)
"""


@pytest.mark.skipif(bool(nvidia_gpus()), reason="a GPU is here")
def test_a_gpu_that_the_driver_alone_shows_is_not_passed_over_in_silence(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """In WSL, and in sandboxes, no GPU is on the PCI bus."""
    library = tmp_path / "libnvidia-ml.so.1"
    compiler = shutil.which("gcc") or pytest.fail("a C compiler is needed, as by torch Inductor")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=NVML, text=True, check=True)
    ran = subprocess.run(
        [sys.executable, "-c", ASKS, str(tiny_bundle.path)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "['H100'] cpu\n"
    assert "AN NVIDIA GPU IS HERE AND IS NOT USED: torch" in ran.stderr


@pytest.fixture
def tensorrt(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a TensorRT of the version that the test names, of which only the version is there."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").touch()
    record = tmp_path / f"tensorrt-{request.param}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {request.param}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return request.param


@pytest.mark.parametrize("tensorrt", ["10.13.3.9", "11.0.0.114", "12.0.1"], indirect=True)
def test_a_tensorrt_of_another_generation_is_refused(tiny_bundle: Bundle, tensorrt: str) -> None:
    """Networks of TensorRT 10 are weakly typed: it would build them, and compute in other types."""
    with pytest.raises(Refused, match=f"TensorRT {tensorrt} is installed, and 11[.]1 or a later"):
        resolve(tiny_bundle, "cuda", "tensorrt", "auto")


@pytest.mark.parametrize("tensorrt", ["11.1.0.106", "11.4.0.1"], indirect=True)
@pytest.mark.skipif(bool(nvidia_gpus()), reason="a GPU is here")
@pytest.mark.usefixtures("tensorrt")
def test_a_tensorrt_that_can_be_used_lacks_but_a_gpu_here(tiny_bundle: Bundle) -> None:
    with pytest.raises(Refused, match="this machine has no NVIDIA GPU"):
        resolve(tiny_bundle, "auto", "tensorrt", "auto")


@pytest.mark.parametrize(
    ("tensorrt", "taken"), [("10.13.3.9", "inductor"), ("11.1.0.106", "tensorrt")], indirect=["tensorrt"]
)
def test_auto_takes_a_tensorrt_that_can_be_used(
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tensorrt: str,
    taken: str,
) -> None:
    monkeypatch.setattr(choice, "nvidia_gpus", lambda: ["H100"])
    monkeypatch.setattr(choice, "unusable", lambda _: None)
    assert resolve(tiny_bundle, "cuda", "auto", "auto").backend == taken
    assert (f"TensorRT {tensorrt} is installed" in caplog.text) == (taken == "inductor")


class _Current:
    """Stands in for torch.cuda.device: the GPU that is the current one."""

    now: Any = None

    def __init__(self, device: Any):
        self._device = torch.device(device)

    def __enter__(self) -> None:
        self._before, _Current.now = _Current.now, self._device

    def __exit__(self, *_: object) -> None:
        _Current.now = self._before


def test_inductor_compiles_and_first_runs_on_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it calls may use the current GPU, whatever a tensor's own is."""
    seen = list[Any]()

    def compiled(*_: object, **__: object) -> Any:
        seen.append(_Current.now)
        return lambda _: seen.append(_Current.now)

    monkeypatch.setattr(torch.cuda, "device", _Current)
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    model = GBAD(torch_bundle.ARCHITECTURE)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    with FakeTensorMode(), torch.device("cuda:3"):
        runtime_inductor.compile_model(model, "cuda:3", "fp16")
    assert seen == [torch.device("cuda:3")] * 2
