"""Where the time of an OpenVINO engine goes: milliseconds an image by kind of operator."""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.runtime.runtime_openvino import (
    DEVICE,
    compile_properties,
    open_core,
    split_models,
)
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.export import engine_for

from ..bench.systems import NotRun

REPEATS = 3  # of which the fastest counts


def operator_ms(bundle: Path, precision: str, cache: Path, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Run the engine's network on a batch uint8 [n, S, S, 3] with OpenVINO's counters; slowest kinds first.

    A kind is OpenVINO's name of an operator and of what executes it, which ends in the type that it computes
    in: `GroupConvolution jit_avx512_I8`. Raises NotRun.
    """
    try:
        engine = engine_for(Bundle.read(bundle), device="cpu", precision=precision, cache_dir=cache)
    except Refused as error:
        raise NotRun(str(error)) from error
    network, _ = split_models(engine.blob)
    counted = compile_properties(usable_cores(), engine.precision) | {"PERF_COUNT": True}
    compiled = open_core().import_model(io.BytesIO(network), DEVICE, counted)
    request = compiled.create_infer_request()
    found: list[dict[str, float]] = []
    for _ in range(REPEATS + 1):
        request.infer({"pixels": pixels})
        found.append(_by_kind(request.get_profiling_info(), len(pixels)))
    fastest = min(found[1:], key=lambda kinds: sum(kinds.values()))
    return dict(sorted(fastest.items(), key=lambda item: -item[1]))


def _by_kind(counters: Sequence[Any], images: int) -> dict[str, float]:
    kinds: defaultdict[str, float] = defaultdict(float)
    for counter in counters:
        milliseconds = counter.real_time.total_seconds() * 1e3 / images
        if milliseconds:
            kinds[f"{counter.node_type} {counter.exec_type}"] += milliseconds
    return dict(kinds)
