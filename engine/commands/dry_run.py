"""Dry run of a scan: counts by extension, and an estimate of its time."""

from dataclasses import dataclass, field, replace

from ..results.features import X_SIZE
from ..results.room import estimated_bytes, free_bytes
from ..scan import Scan
from ..settings import ScanSettings
from ..sources import check, count, left_out
from ..system.machine import usable_cores
from ..text import counted, disk_size, duration, escaped

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
    disk_bytes: int = 0  # that the results take until the scan has ended, with their parts and features
    disk_free_bytes: int | None = None  # where --out is

    def text(self) -> str:
        """Format the estimate for a person."""
        lines = [f"{counted(self.images, 'image')}, {self.bytes / 1e9:.3f} GB"]
        lines += [f"  {n:>10} {escaped(name) or '(no extension)'}" for name, n in self.by_extension.items()]
        if self.containers:
            lines.append(f"  folders or archives that cannot be read to their end: {self.containers}")
        if self.other_files:
            others = ", ".join(left_out(name, number) for name, number in self.other_files.items())
            lines.append(f"  left out: {escaped(others)}")
        if self.images_per_second:
            lines.append(
                f"about {duration(self.seconds)} at {self.images_per_second:.1f} img/s, "
                f"as a sample of {counted(self.sample, 'image')} ran here"
            )
        if self.disk_free_bytes is not None:
            free = disk_size(self.disk_free_bytes)
            lines.append(f"about {disk_size(self.disk_bytes)} of disk for the results, {free} free")
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
    rows = result.images + result.containers
    x_size = X_SIZE if settings.features else None
    result.disk_bytes = estimated_bytes(rows, is_folder=settings.out_is_folder, x_size=x_size)
    if settings.out_path and settings.out_path.absolute().parent.is_dir():
        result.disk_free_bytes = free_bytes(settings.out_path.absolute().parent)
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
