"""Which of the five threats another data set's class is: evident names, or a map that the user writes."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Refused
from ..row import THREATS

IGNORE = "ignore"  # a class that is none of the five: no label
NAMED = 10  # unknown classes in one sentence
# SIXray leaves its hammers out; all of OPIXray's cutters but one are knives
_EVIDENT = {
    **{threat: threat for threat in THREATS},
    **dict.fromkeys(("plier",), "pliers"),
    **dict.fromkeys(("scissor",), "scissors"),
    **dict.fromkeys(("folding knife", "straight knife", "utility knife", "multi tool knife"), "knife"),
    **dict.fromkeys(("benign", "negative", "negatives", "hammer"), IGNORE),
}


@dataclass
class ClassMap:
    """Names of classes as a data set writes them, and the threat or IGNORE that each is."""

    known: dict[str, str]
    unknown: dict[str, str] = field(default_factory=dict)  # names met that it lacks, and where first

    def __call__(self, name: str, origin: str) -> str | None:
        """Return the threat that a class is, None where it is none; one unknown is kept for `check`."""
        threat = self.known.get(name) or _EVIDENT.get(_plain(name))
        if threat is None:
            self.unknown.setdefault(name, origin)
        return None if threat == IGNORE else threat

    def check(self) -> None:
        """Raise Refused where a class was met that is unknown; all are named, to be written down at once."""
        if not self.unknown:
            return
        (name, origin), *others = self.unknown.items()
        some = ", ".join(repr(other) for other, _ in others[:NAMED])
        rest = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        also = f", as are {some}{rest}" if others else ""
        raise Refused(
            f"{origin}: the class {name!r} is unknown{also}; give a TOML file by --class-map that holds, "
            f'below [classes], "{name}" = "knife" (or another of {", ".join(THREATS)}) or '
            f'"{name}" = "{IGNORE}"'
        )


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def read_class_map(path: Path | None) -> ClassMap:
    """Read the table [classes] of a TOML file, other name = "knife" or "ignore"; None maps evident names.

    What the file says of a name goes before what is evident. Raises Refused for a file that is no such map.
    """
    if path is None:
        return ClassMap({})
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"the class map {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the class map {path} is not a TOML file: {error}") from error
    table = content.pop("classes", None)
    if not isinstance(table, dict) or content:
        raise Refused(f"the class map {path} must hold one table, [classes], and no more")
    for name, threat in table.items():
        if threat not in (*THREATS, IGNORE):
            raise Refused(
                f"the class map {path} maps {name!r} to {threat!r}; write one of {', '.join(THREATS)} "
                f"or {IGNORE}"
            )
    return ClassMap(table)
