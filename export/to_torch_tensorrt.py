"""A second builder of TensorRT's plans: torch-tensorrt, which converts torch's operators one by one.

What it builds may be faster or slower than what TensorRT's parser makes of an ONNX graph; both are timed. It
works with a single minor version of TensorRT, is an extra of its own, and ignores keywords that it does not
know, so a test holds ours to its signature. Its caches stay off: they are pickles in a folder that all users
share.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.errors import Refused
from ..engine.text import one_line


def is_usable() -> bool:
    """Tell whether torch-tensorrt is installed, without importing it."""
    return find_spec("torch_tensorrt") is not None


def build_plan(
    module: nn.Module,
    sample: Tensor,
    names: tuple[str, tuple[str, ...]],
    timings: bytes,
    *,
    most: int,
    workspace: int,
) -> tuple[bytes, bytes]:
    """Build the plan of a module on the current GPU, for batches of 1 to `most` like the `sample`.

    `names` are those of the plan's input, by which it is known again, and of its outputs: torch-tensorrt
    gives a network no name. `workspace` is in bytes. Returns the plan, and TensorRT's timing cache with what
    was measured. Raises Refused.
    """
    try:
        import torch_tensorrt
        from torch_tensorrt import dynamo

        device = torch.device("cuda", torch.cuda.current_device())
        dynamic = ({0: torch.export.Dim("batch", min=1, max=most)},)
        given = sample.to(device)
        with torch.no_grad():
            program = torch.export.export(module.to(device), (given,), dynamic_shapes=dynamic)
        with tempfile.TemporaryDirectory(prefix="gbad-batch-") as folder:
            file = Path(folder) / "timings"
            file.write_bytes(timings)
            plan = dynamo.convert_exported_program_to_serialized_trt_engine(
                program,
                arg_inputs=[
                    torch_tensorrt.Input(
                        min_shape=(1, *sample.shape[1:]),
                        opt_shape=(most, *sample.shape[1:]),
                        max_shape=(most, *sample.shape[1:]),
                        dtype=sample.dtype,
                    )
                ],
                device=device,
                disable_tf32=True,  # float32 stays exact
                workspace_size=workspace,
                require_full_compilation=True,
                max_aux_streams=0,  # everything runs on the caller's stream, which is captured
                timing_cache_path=str(file),
                cache_built_engines=False,
                reuse_cached_engines=False,
                immutable_weights=True,
                arg_input_binding_names=(names[0],),
                output_binding_names=names[1],
            )
            return bytes(plan), file.read_bytes()
    # KeyError: it asks for the user's name when it is imported, and not every user has one
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise Refused(f"torch-tensorrt cannot build it ({one_line(error)[:200]})") from error
