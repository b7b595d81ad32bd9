"""Stands in for torch-tensorrt, in tests alone: its plans run the exported program, in this process only.

It is no torch-tensorrt: it converts no operator. It has the keywords of `.typing/torch_tensorrt` and no
others, where the real one swallows what it does not know; `test_tensorrt` holds these to the real signature.
"""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import pytest
import torch
from torch.export import ExportedProgram

VERSION = "2.14.0"


class Input:
    def __init__(self, *, min_shape: Any, opt_shape: Any, max_shape: Any, dtype: torch.dtype):
        self.shapes = min_shape, opt_shape, max_shape
        self.dtype = dtype


def convert_exported_program_to_serialized_trt_engine(
    exported_program: ExportedProgram,
    *,
    arg_inputs: Any,
    device: torch.device,
    disable_tf32: bool = False,
    workspace_size: int = 0,
    require_full_compilation: bool = False,
    max_aux_streams: int | None = None,
    timing_cache_path: str = "/tmp/torch_tensorrt_engine_cache/timing_cache.bin",
    cache_built_engines: bool = False,
    reuse_cached_engines: bool = False,
    immutable_weights: bool = True,
    arg_input_binding_names: tuple[str, ...] | None = None,
    output_binding_names: tuple[str, ...] | None = None,
) -> bytes:
    (given,) = arg_inputs
    assert device == torch.device("cuda", 0)
    assert arg_input_binding_names is not None
    assert output_binding_names is not None
    assert require_full_compilation
    assert immutable_weights
    assert workspace_size
    assert not cache_built_engines
    assert not reuse_cached_engines
    config = fake_tensorrt.IBuilderConfig()
    file = Path(timing_cache_path)
    timings = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if not config.set_timing_cache(timings, ignore_mismatch=False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    facts = {
        "least": given.shapes[0],
        "most": given.shapes[2],
        "streams": 4 if max_aux_streams is None else max_aux_streams,
        "tf32": not disable_tf32,
    }
    (entry,) = arg_input_binding_names
    sample = torch.zeros(2, *given.shapes[0][1:], dtype=given.dtype)
    program = fake_tensorrt.Program(exported_program.module(), sample, entry, output_binding_names)
    content = f"program {len(fake_tensorrt.PROGRAMS)}".encode()
    fake_tensorrt.PROGRAMS[content] = program
    file.write_bytes(timings.serialize())
    return fake_tensorrt.plan_of({"name": "Unnamed Network 0", **facts}, content)


def install(patch: pytest.MonkeyPatch) -> None:
    """Have `import torch_tensorrt` find this module."""
    module, dynamo = (ModuleType(name) for name in ("torch_tensorrt", "torch_tensorrt.dynamo"))
    for each, content in (
        (module, {"Input": Input, "dynamo": dynamo, "__path__": []}),
        (dynamo, {"convert_exported_program_to_serialized_trt_engine": convert}),
    ):
        each.__spec__ = ModuleSpec(each.__name__, None)
        vars(each).update(content)
        patch.setitem(sys.modules, each.__name__, each)
    fake_tensorrt.say_version(patch, "torch-tensorrt", VERSION)


convert = convert_exported_program_to_serialized_trt_engine
