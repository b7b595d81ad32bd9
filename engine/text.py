"""Text for people: names from an archive may hold anything, even terminal commands."""

import signal


def escaped(name: str) -> str:
    """Escape every character that does not print, so that no name can control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def one_line(error: BaseException) -> str:
    """Join the lines of an error's message."""
    return " ".join(str(error).split()) or type(error).__name__


def duration(seconds: float) -> str:
    """Write a time span as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGSEGV; real-time signals have only numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
