"""The errors that end a command, each with its exit code.

GbadError                 one sentence for the user: what happened, where, what to do
├── Refused          (2)  before the first image was read
│   ├── BundleError       a model that cannot be trusted or used
│   └── MissingExtra      a package that an option needs is not installed
├── Stopped          (1)  the machine failed later; the scan can be resumed
│   └── DeviceLost        a GPU no longer answers this process; a new process can use it
└── TooManyFailures  (4)  --max-failures was reached; the scan can be resumed
"""

from typing import Any


class GbadError(Exception):
    """An error that a user can act on; its text is one sentence in lower case, without a full stop."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Make it picklable for worker processes, whatever its constructor takes."""
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[GbadError], arguments: tuple[Any, ...], state: dict[str, Any]) -> GbadError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    vars(error).update(state)
    return error


class Refused(GbadError):
    """Nothing was read: the command, its input or its output is not usable as given."""

    exit_code = 2


class BundleError(Refused):
    """A model bundle fails one of its checks."""


class MissingExtra(Refused):
    """An option needs a package of an extra that is not installed."""


def how_to_install(extra: str) -> str:
    """Say how to add an extra: from a clone, for the package is on no index."""
    if extra == "tensorrt":  # which constraints.txt does not pin
        command = "pip install '.[tensorrt]' --extra-index-url ADDRESS (that of NVIDIA's index)"
    else:
        command = f"pip install -c constraints.txt '.[{extra}]'"
    return f"in your clone of gbad-batch run {command}"


class Stopped(GbadError):
    """A fault of the machine ended the scan; finished rows are kept."""

    exit_code = 1


class DeviceLost(Stopped):
    """A GPU no longer answers this process, as after an illegal memory access; a new process can use it."""

    def __init__(self, what: str):
        super().__init__(f"{what}; finished rows are kept: run the same command again to resume")
        self.what = what  # without what to do


class TooManyFailures(GbadError):
    """More images failed than the user allows; finished rows are kept."""

    exit_code = 4
