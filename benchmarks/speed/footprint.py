"""How much disk the default install takes, by package."""

import argparse
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..report import ROOT, Report

MIB = 2**20


def run(_: argparse.Namespace) -> Report:
    """Add up the files of gbad-batch and of all that it requires, without extras and without pip."""
    sizes = {name: _bytes(name) / MIB for name in _closure("gbad-batch")}
    sizes["gbad-batch"] = _own_bytes() / MIB
    report = Report("Disk taken by the default install")
    report.add("installed_mib", sum(sizes.values()), "MiB", at_most=600)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:10]:
        report.add(name, size, "MiB")
    return report


def _closure(name: str) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in found or not _is_installed(name):
            continue
        found.add(name)
        plain = [line for line in distribution(name).requires or [] if "extra ==" not in line]
        waiting += [re.split(r"[^\w.-]", line)[0].lower() for line in plain]
    return found


def _is_installed(name: str) -> bool:
    """Say no for what only another Python or system requires."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _bytes(name: str) -> int:
    files = distribution(name).files or []
    return sum(size.stat().st_size for size in (Path(str(file.locate())) for file in files) if size.is_file())


def _own_bytes() -> int:
    """Measure the folders of this checkout, since an editable install holds none of the files."""
    folders = (ROOT / name for name in ("engine", "export", "kernels"))
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
