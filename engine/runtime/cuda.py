"""Tells whether a GPU still works, and makes one the current one."""

from contextlib import AbstractContextManager, nullcontext

import torch


def is_lost(device: torch.device) -> bool:
    """Tell whether a GPU no longer responds to this process: after some errors every later call fails too.

    This tries a call, since the libraries' error messages do not tell; two calls, since one may report an
    error of an earlier one; and on the default stream, since the device cannot be synchronized while another
    thread captures a CUDA graph on it.
    """
    for _ in range(2):
        try:
            torch.cuda.default_stream(device).synchronize()
        except RuntimeError:
            continue
        return False
    return True


def current(device: str) -> AbstractContextManager[object]:
    """Give the context in which `cuda:N` is the current GPU, as libraries that do not ask expect it."""
    return nullcontext() if device == "cpu" else torch.cuda.device(device)


def visible_gpus() -> tuple[str, ...]:
    """Name the GPUs that this process may use, `cuda:N`."""
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
