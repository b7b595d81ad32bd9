"""Builds engines from a trained model, checks them against FP32 and caches them."""

import importlib
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choice import Choice, gpu_name, nvidia_gpus, precisions, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..engine.bundle import Bundle
    from ..engine.runtime import Engine, Parity
    from ..engine.runtime.cache import EngineCache
    from .gate import Built

if __name__ != "gbad_batch.export":
    raise ImportError(f"import this package as gbad_batch.export, not as {__name__}")

__all__ = ["Choice", "engine_for", "nvidia_gpus", "resolve"]

log = logging.getLogger(__name__)

REFUSED = "refused"  # key of a record: why the parity gate refused the engine


def engine_for(
    bundle: "Bundle",
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> "Engine":
    """Return an engine of the bundle that has passed the parity gate, from the cache or newly built.

    The gate uses at most `threads` cores (None: all that this process may use). If the gate refuses what
    `auto` tries first, the engine has the next slower precision. Raises Refused for a device, engine and
    precision that do not go together on this machine, and if the gate refuses the engine.
    """
    choice = resolve(bundle, device, engine, precision)
    log.debug("device %s, engine %s, precision %s resolve to %s", device, engine, precision, choice)
    from ..engine.runtime.cache import EngineCache

    cache = EngineCache.open(cache_dir)
    try:
        if precision == "auto":
            return _fastest(bundle, choice, cache, threads)
        return _load_or_build(bundle, choice, cache, threads)
    finally:
        if cache:
            cache.close()


def _fastest(bundle: "Bundle", choice: Choice, cache: "EngineCache | None", threads: int | None) -> "Engine":
    """Return the fastest engine that passes the gate here, with the reason if there was a choice."""
    from .gate import BeyondTolerance

    *faster, slowest = precisions(bundle, choice.device, choice.backend)
    refusals: list[str] = []
    for precision in faster:
        try:
            engine = _load_or_build(bundle, choice._replace(precision=precision), cache, threads)
        except BeyondTolerance as error:
            refusals.append(f"not the faster {precision}: {error.finding}")
            continue
        passed = "it is faster and passed the parity gate on this machine"
        return replace(engine, reason="; ".join((f"{precision} is used: {passed}", *refusals)))
    engine = _load_or_build(bundle, choice._replace(precision=slowest), cache, threads)
    return replace(engine, reason=", ".join((f"{slowest} is used", *refusals))) if refusals else engine


def _load_or_build(
    bundle: "Bundle", choice: Choice, cache: "EngineCache | None", threads: int | None
) -> "Engine":
    """Return an engine from the cache, or build one, pass it through the gate and store it.

    A refusal is stored too, so that later scans need not repeat it, except that of FP32, which nothing can
    replace.
    """
    from ..engine.runtime import Engine
    from ..engine.runtime.cache import cache_key
    from .gate import BeyondTolerance, Built, first_to_pass

    facts = _facts(bundle, choice)
    key = cache_key(facts)
    entry = cache.load(key) if cache else None
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
    log.debug("%s: %s, key %s", engine.description, "cached" if entry else "to be built", key[:12])
    if engine.parity is not None:
        return engine
    candidates = (
        [Built(entry.blob, entry.record.get("built", {}))] if entry else _build(bundle, engine, cache)
    )
    try:
        engine, passed = first_to_pass(bundle, engine, candidates, threads)
    except BeyondTolerance as error:
        if cache and choice.precision != "fp32":
            cache.store(key, b"", {"facts": facts, REFUSED: error.finding})
        raise
    log.debug("%s: %s", engine.description, engine.parity)
    if cache:
        parity = asdict(engine.parity) if engine.parity else None
        cache.store(key, engine.blob, {"facts": facts, "built": dict(passed.how), "parity": parity})
    return engine


def _build(bundle: "Bundle", engine: "Engine", cache: "EngineCache | None") -> "Iterator[Built]":
    """Build candidates for the backend, the fastest first, each only when the one before was refused."""
    from .gate import Built

    if engine.backend != "openvino":
        log.info("compiling the model for %s: this takes minutes, once", engine.device)
    if engine.backend == "tensorrt":
        from . import to_tensorrt

        yield from to_tensorrt.build(bundle, engine, gpu_name(engine.device), cache)
    elif engine.backend == "inductor":
        from . import to_inductor

        yield Built(to_inductor.build(bundle, engine.device, engine.precision), {})
    else:
        from . import to_openvino

        network, constants = bundle.network_int8 if engine.precision == "int8" else (bundle.network_onnx, b"")
        yield Built(to_openvino.build(network, bundle.bigan_onnx, constants, engine.precision), {})


def _facts(bundle: "Bundle", choice: Choice) -> dict[str, Any]:
    """Return everything that the engine's outputs depend on."""
    from ..engine.system.machine import ISA_LIMITS, cpu_flags, cpu_model

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
        **({} if choice.device == "cpu" else {"kernels": _kernels()}),
    }


def _kernels() -> str:
    """Return what computes our operators on a GPU, which also decides what is fastest there."""
    from ..kernels.compiler import triton_compiles

    return "triton" if triton_compiles() else "torch"


def _parity(record: "Mapping[str, Any]") -> "Parity | None":
    """Read the gate's report from a cached record; None if it is incomplete."""
    from ..engine.runtime import Parity

    parity = record.get("parity")
    if not isinstance(parity, dict) or parity.keys() != Parity.__dataclass_fields__.keys():
        return None
    return Parity(**{**parity, "cpu_flags": tuple(parity["cpu_flags"])})
