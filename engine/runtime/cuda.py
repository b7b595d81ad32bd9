"""What a GPU is asked about itself."""

import torch


def is_lost(device: torch.device) -> bool:
    """Tell whether a GPU answers this process no more: after some errors each later call fails as well.

    It is asked, since no message of the libraries between says so; twice, since a call may report what an
    earlier one did wrong; and by its default stream, since a whole device cannot be waited for while another
    thread captures a graph on it.
    """
    for _ in range(2):
        try:
            torch.cuda.default_stream(device).synchronize()
        except RuntimeError:
            continue
        return False
    return True


def visible_gpus() -> tuple[str, ...]:
    """Name the GPUs that this process may use, `cuda:N`."""
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
