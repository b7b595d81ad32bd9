"""Map the class names of other data sets to the five threats: obvious names, or a map by the user."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Refused
from ..row import THREATS
from ..system.toml import read_toml

IGNORE = "ignore"  # a class that is not one of the five: no label
MOST_LISTED = 10  # unknown classes in one message
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
    """Class names as a data set writes them, mapped to threats or IGNORE."""

    known: dict[str, str]
    unknown: dict[str, str] = field(
        default_factory=dict
    )  # names without a mapping, and where each first occurs

    def __call__(self, name: str, origin: str) -> str | None:
        """Return the threat of a class, None if it is not a threat; keeps an unknown class for `check`."""
        threat = self.known.get(name) or _EVIDENT.get(_plain(name))
        if threat is None:
            self.unknown.setdefault(name, origin)
        return None if threat == IGNORE else threat

    def check(self) -> None:
        """Raise Refused if there were unknown classes; the message names all of them."""
        if not self.unknown:
            return
        (name, origin), *others = self.unknown.items()
        some = ", ".join(repr(other) for other, _ in others[:MOST_LISTED])
        rest = f" and {len(others) - MOST_LISTED} more" if len(others) > MOST_LISTED else ""
        also = f", as are {some}{rest}" if others else ""
        raise Refused(
            f"{origin}: the class {name!r} is unknown{also}; give a TOML file with --class-map that maps it, "
            f'below [classes]: "{name}" = "knife" (or another of {", ".join(THREATS)}) or '
            f'"{name}" = "{IGNORE}"'
        )


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def read_class_map(path: Path | None) -> ClassMap:
    """Read the table [classes] of a TOML file, other name = "knife" or "ignore"; None: obvious names only.

    The file overrides obvious names. Raises Refused if it is not such a map.
    """
    if path is None:
        return ClassMap({})
    content = read_toml(path, "the class map")
    table = content.pop("classes", None)
    if not isinstance(table, dict) or content:
        raise Refused(f"the class map {path} must hold exactly one table, [classes]")
    for name, threat in table.items():
        if threat not in (*THREATS, IGNORE):
            raise Refused(
                f"the class map {path} maps {name!r} to {threat!r}; write one of {', '.join(THREATS)} "
                f"or {IGNORE}"
            )
    return ClassMap(table)
