"""Text for people: names from an archive may hold anything, also what a terminal would obey."""

import signal


def escaped(name: str) -> str:
    """Write every character that does not print as its escape, so that no name commands a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def one_line(error: BaseException) -> str:
    """Say on one line what an error says on many."""
    return " ".join(str(error).split()) or type(error).__name__


def duration(seconds: float) -> str:
    """Write a time span as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def signal_name(number: int) -> str:
    """Name a signal as programmers know it; real-time signals have only numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
