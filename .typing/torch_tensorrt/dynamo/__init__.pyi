from collections.abc import Sequence

import torch
from torch.export import ExportedProgram

from .. import Input

def convert_exported_program_to_serialized_trt_engine(
    exported_program: ExportedProgram,
    *,
    arg_inputs: Sequence[Input],
    device: torch.device,
    disable_tf32: bool = False,
    workspace_size: int = 0,
    require_full_compilation: bool = False,
    max_aux_streams: int | None = None,
    timing_cache_path: str = ...,
    cache_built_engines: bool = False,
    reuse_cached_engines: bool = False,
    immutable_weights: bool = True,
    arg_input_binding_names: tuple[str, ...] | None = None,
    output_binding_names: tuple[str, ...] | None = None,
) -> bytes: ...
