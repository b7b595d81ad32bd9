"""From a trained model to engines that are ready to run, and the cache that keeps them."""

import importlib
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choice import Choice, gpu_name, nvidia_gpus, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..engine.bundle import Bundle
    from ..engine.runtime import Engine, Parity
    from .cache import EngineCache
    from .gate import Built

if __name__ != "gbad_batch.export":
    raise ImportError(f"import this package as gbad_batch.export, not as {__name__}")

__all__ = ["Choice", "engine_for", "nvidia_gpus", "resolve"]

log = logging.getLogger(__name__)

REFUSED = "refused"  # in the record of an engine that the gate did not pass: the finding
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # hold oneDNN below what the CPU can do


def engine_for(
    bundle: "Bundle",
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> "Engine":
    """Give an engine of the bundle, built or cached, that has passed the parity gate and is ready to open.

    `threads` (None: those that this process may use) bounds the gate. Where `auto` would like INT8 and the
    gate does not pass it, the engine is FP32's. Raises Refused for a device, engine and precision that cannot
    go together here, or where the gate does not pass.
    """
    choice = resolve(bundle, device, engine, precision)
    from .cache import EngineCache

    kept = EngineCache.open(cache_dir)
    try:
        if precision == "auto" and choice.precision == "int8":
            return _int8_or_fp32(bundle, choice, kept, threads)
        return _ready(bundle, choice, kept, threads)
    finally:
        if kept:
            kept.close()


def _int8_or_fp32(
    bundle: "Bundle", choice: Choice, kept: "EngineCache | None", threads: int | None
) -> "Engine":
    """Take INT8 where it passes the gate on this machine, else FP32, and say which and why."""
    from .gate import BeyondTolerance

    try:
        engine = _ready(bundle, choice, kept, threads)
    except BeyondTolerance as error:
        engine = _ready(bundle, choice._replace(precision="fp32"), kept, threads)
        return replace(engine, reason=f"fp32 is used, not the faster int8: {error.finding}")
    return replace(engine, reason="int8 is used: it is the faster one, and it passed the parity gate here")


def _ready(bundle: "Bundle", choice: Choice, kept: "EngineCache | None", threads: int | None) -> "Engine":
    """Take an engine from the cache, or build one, have it pass the gate, and keep it.

    A refusal is kept too where another precision can take its place, for the next scan would only meet it
    again; what FP32 was refused for is tried again.
    """
    from ..engine.runtime import Engine
    from .cache import cache_key
    from .gate import BeyondTolerance, Built, first_to_pass

    facts = _facts(bundle, choice)
    key = cache_key(facts)
    entry = kept.load(key) if kept else None
    if entry and REFUSED in entry.record:
        raise BeyondTolerance(entry.record[REFUSED])
    engine = Engine(
        backend=choice.backend,
        version=facts["version"],
        device=choice.device,
        precision=choice.precision,
        input_size=facts["input_size"],
        features=bundle.manifest.architecture.features,
        bundle_hash=bundle.hash,
        key=key,
        blob=entry.blob if entry else b"",
        parity=_parity(entry.record) if entry else None,
    )
    if engine.parity is not None:
        return engine
    built = [Built(entry.blob, entry.record.get("built", {}))] if entry else _build(bundle, engine, kept)
    try:
        engine, passed = first_to_pass(bundle, engine, built, threads)
    except BeyondTolerance as error:
        if kept and choice.precision != "fp32":
            kept.store(key, b"", {"facts": facts, REFUSED: error.finding})
        raise
    log.debug("%s: %s", engine.description, engine.parity)
    if kept:
        parity = asdict(engine.parity) if engine.parity else None
        kept.store(key, engine.blob, {"facts": facts, "built": dict(passed.how), "parity": parity})
    return engine


def _build(bundle: "Bundle", engine: "Engine", kept: "EngineCache | None") -> "Iterator[Built]":
    """Make what the runner of the backend opens, the fastest first; none is made before it is asked for."""
    from .gate import Built

    if engine.backend != "openvino":
        log.info("the model is being compiled for %s, once: this takes minutes", engine.device)
    if engine.backend == "tensorrt":
        from . import to_tensorrt

        yield from to_tensorrt.build(bundle, engine, gpu_name(engine.device), kept)
    elif engine.backend == "inductor":
        from . import to_inductor

        yield Built(to_inductor.build(bundle, engine.device, engine.precision), {})
    else:
        from ..engine.runtime import runtime_openvino

        network, constants = bundle.network_int8 if engine.precision == "int8" else (bundle.network_onnx, b"")
        yield Built(runtime_openvino.build(network, bundle.bigan_onnx, constants), {})


def _facts(bundle: "Bundle", choice: Choice) -> dict[str, Any]:
    """All that the engine's numbers depend on."""
    from ..engine.system.machine import cpu_flags, cpu_model

    runtime = importlib.import_module(f"..engine.runtime.runtime_{choice.backend}", __name__)
    return {
        "bundle": bundle.hash,
        "backend": choice.backend,
        "version": runtime.version(),
        "device": cpu_model() if choice.device == "cpu" else gpu_name(choice.device),
        "cpu_flags": sorted(cpu_flags()),
        "isa_limit": {name: os.environ.get(name) for name in ISA_LIMITS},
        "precision": choice.precision,
        "input_size": bundle.manifest.architecture.input_size,
        "batch": runtime.BATCH,
    }


def _parity(record: "Mapping[str, Any]") -> "Parity | None":
    """Read the gate's report as a cached record holds it, or None where it is not whole."""
    from ..engine.runtime import Parity

    found = record.get("parity")
    if not isinstance(found, dict) or found.keys() != Parity.__dataclass_fields__.keys():
        return None
    return Parity(**{**found, "cpu_flags": tuple(found["cpu_flags"])})
