"""Dry run of a scan: counts by extension, and an estimate of its time."""

from dataclasses import dataclass, field, replace

from ..scan import Scan
from ..settings import ScanSettings
from ..sources import check, count
from ..system.machine import usable_cores
from ..text import duration, escaped

SAMPLE = 32  # images a core whose scan is timed for the estimate


@dataclass
class Estimate:
    """Counts of a listing, and how long a scan of it would take on this machine."""

    images: int = 0
    containers: int = 0  # folders and archives that could not be listed to their end
    bytes: int = 0
    by_extension: dict[str, int] = field(default_factory=dict)
    other_files: dict[str, int] = field(default_factory=dict)
    sample: int = 0  # images whose scan was timed
    images_per_second: float = 0.0
    seconds: float = 0.0

    def text(self) -> str:
        """Format the estimate for a person."""
        lines = [f"{self.images} images, {self.bytes / 1e9:.3f} GB"]
        lines += [f"  {n:>10} {escaped(name) or '(no extension)'}" for name, n in self.by_extension.items()]
        if self.containers:
            lines.append(f"  {self.containers:>10} folders or archives cannot be read to their end")
        if self.other_files:
            lines.append("other files, left out:")
            lines += [f"  {n:>10} {escaped(name)}" for name, n in self.other_files.items()]
        if self.images_per_second:
            lines.append(
                f"about {duration(self.seconds)} at {self.images_per_second:.1f} img/s, "
                f"as a sample of {self.sample} images ran here"
            )
        return "\n".join(lines)


def estimate(settings: ScanSettings) -> Estimate:
    """List everything and scan a sample; raises Refused if a source does not exist."""
    check(settings)
    census = count(settings, settings.max_file_size)
    images = min(census.listed.images, settings.limit or census.listed.images)
    result = Estimate(
        images=images,
        containers=census.listed.containers,
        bytes=census.bytes,
        by_extension=dict(census.extensions.most_common()),
        other_files=dict(census.listed.skipped.most_common()),
    )
    if images and settings.files_from != "-":  # a piped list is read once
        result.sample = min(images, SAMPLE * usable_cores())
        result.images_per_second = _speed(replace(settings, limit=result.sample))
        result.seconds = images / result.images_per_second
    return result


def _speed(settings: ScanSettings) -> float:
    """Return the images per second of a scan, without its start-up."""
    scan = Scan(settings)
    done = sum(1 for _ in scan.rows())
    return done / scan.progress.elapsed()
