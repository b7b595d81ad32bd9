"""Small TOML files that a user names."""

import tomllib
from pathlib import Path
from typing import Any

from ..errors import Refused

MOST_BYTES = 1 << 20


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file, called `what` in errors; raises Refused where it is none, too large or too deep."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise Refused(f"{what} {path} is larger than {MOST_BYTES >> 20} MB: name another file")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise Refused(f"{what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        raise Refused(f"{what} {path} is not a TOML file: {error}") from error
    except RecursionError:
        raise Refused(f"{what} {path} nests its values too deeply: make it flat") from None
