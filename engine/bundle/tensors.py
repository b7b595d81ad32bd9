"""Reads safetensors files, a header of names, types and offsets before the numbers, without copying."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError

TYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
NAMES = re.compile(r"(network|bigan|standardize|decision|typicality)(\.[A-Za-z0-9_]{1,80}){1,16}")
LARGEST_HEADER = 4 << 20  # bytes
MOST_TENSORS = 20_000
MOST_DIMENSIONS = 6


def parse_tensors(data: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Return read-only arrays by name from the bytes of the safetensors file `name`.

    Every shape, type and offset is checked against the length of the file before an array is made; tensors
    must be contiguous and every number finite. Raises BundleError.
    """
    header, start = _header(data, name)
    if len(header) > MOST_TENSORS:
        raise BundleError(f"{name} holds {len(header)} tensors, above the limit of {MOST_TENSORS}")
    arrays: dict[str, NDArray[Any]] = {}
    end = 0
    for key, (begin, stop, dtype, shape) in sorted(
        ((key, _entry(key, entry, name)) for key, entry in header.items()), key=lambda item: item[1][:2]
    ):
        if begin != end or stop > len(data) - start:
            raise BundleError(f"{name}: the tensor {key!r:.120} does not start where the one before it ends")
        end = stop
        arrays[key] = np.frombuffer(data, dtype, math.prod(shape), start + begin).reshape(shape)
        if not np.isfinite(arrays[key]).all():
            raise BundleError(f"{name}: the tensor {key!r:.120} holds a value that is not finite")
    if end != len(data) - start:
        raise BundleError(f"{name} holds {len(data) - start - end} bytes that belong to no tensor")
    return arrays


def _header(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """Return the header, without its free metadata, and the offset of the numbers."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(LARGEST_HEADER, len(data) - 8):
        raise BundleError(f"{name} is cut short, or its header is larger than {LARGEST_HEADER} bytes")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise BundleError(f"{name} has a header that is not JSON") from None
    if not isinstance(header, dict):
        raise BundleError(f"{name} has a header that is not an object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _entry(key: str, entry: Any, name: str) -> tuple[int, int, np.dtype[Any], tuple[int, ...]]:
    """Return begin, end, type and shape of a tensor, each checked."""
    where = f"{name}: the tensor {key!r:.120}"
    if not NAMES.fullmatch(key):
        raise BundleError(f"{where} has a name that is not allowed")
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BundleError(f"{where} is not described by dtype, shape and data_offsets")
    dtype = TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise BundleError(
            f"{where} has the type {entry['dtype']!r:.20} and must be one of {', '.join(TYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _whole_numbers(shape, MOST_DIMENSIONS) or not _whole_numbers(offsets, 2) or len(offsets) != 2:
        raise BundleError(f"{where} has a shape or an offset that is not made of whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise BundleError(f"{where} has the shape {shape!r:.80}, which does not match its size in bytes")
    return offsets[0], offsets[1], dtype, tuple(shape)


def _whole_numbers(values: Any, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(value) is int and 0 <= value < 1 << 40 for value in values)
    )
