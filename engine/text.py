"""Text for people: names from an archive may hold anything, even terminal commands."""

import signal
from datetime import UTC, datetime

_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def escaped(name: str) -> str:
    """Escape every character that does not print, so that no name can control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def counted(number: int, noun: str) -> str:
    """Write a number and its noun, in the plural unless there is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """Join the lines of an error's message."""
    return " ".join(str(error).split()) or type(error).__name__


def duration(seconds: float) -> str:
    """Write a time span as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def disk_size(count: int) -> str:
    """Write a number of bytes in the largest unit that leaves a digit before the point, at least kB."""
    unit = next((unit for unit in ("TB", "GB", "MB") if count >= _UNITS[unit]), "kB")
    return f"{count / _UNITS[unit]:.1f} {unit}"


def timestamp() -> str:
    """Write the present time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGSEGV; real-time signals have only numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
