"""Features of a site's own bags: one pass of the scan itself, which stores them and can be resumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..results.parts import PartFolder, keys_in, read_parquet
from ..results.schema import KEY_COLUMNS, columns_of, features_schema, read_footer
from ..results.staging import staging_of
from ..row import THREATS
from ..scan import Scan
from ..settings import ScanSettings
from ..system.progress import ProgressCallback
from ..workers.progress import Progress

STRETCHES = 20  # of the archive
RARE = 0.002  # share of harmless images that may be trimmed

Index = NDArray[np.intp]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Bags:
    """Features of images, in the order of the archive."""

    x: Floats  # [n, features]
    logits: Floats  # [n, 5]

    def take(self, index: Index) -> "Bags":
        """Return the images at these positions."""
        return Bags(self.x[index], self.logits[index])


def scan_bags(settings: ScanSettings, progress: ProgressCallback) -> None:
    """Scan into `settings.out`, with features, unless that is finished; a scan that was killed is resumed."""
    out = settings.out_path
    assert out is not None
    if read_footer(out) is not None and not staging_of(out).exists():
        return

    def watch(scanned: Progress) -> None:
        done = scanned.earlier + scanned.done
        progress(f"scan in {settings.precision}", done, max(scanned.total or 0, done), {})

    Scan(settings).run(watch)


def read_bags(results: Path, features: Path, length: int) -> dict[bytes, tuple[bytes, Floats, Floats]]:
    """Return digest, x [length] and logits [5] of each scored image by its key, in the order of the rows."""
    stored: dict[bytes, tuple[Floats, Floats]] = {}
    for part in PartFolder(features, "features").parts:
        for batch in read_parquet(part.path, features_schema(length, len(THREATS))):
            columns = [
                batch.column(name).flatten().to_numpy().reshape(batch.num_rows, -1).astype(np.float32)
                for name in ("x", "logits")
            ]
            stored.update(zip(keys_in(batch), zip(*columns, strict=True), strict=True))
    found = {}
    for batch in read_parquet(results, columns_of(*KEY_COLUMNS, "sha256", "status")):
        digests, statuses = (batch.column(name).to_pylist() for name in ("sha256", "status"))
        for key, digest, status in zip(keys_in(batch), digests, statuses, strict=True):
            if status == "ok":
                found[key] = digest, *stored[key]
    return found


def each_once(forms: Sequence[dict[bytes, tuple[bytes, Floats, Floats]]]) -> list[Bags]:
    """Return the images that every scan has scored, and of equal files the first, for each scan.

    Raises Refused if there are none.
    """
    first, *others = forms
    digests: dict[bytes, bytes] = {}  # of each file, the key of its first image
    for key, (digest, *_) in first.items():
        if all(key in other for other in others):
            digests.setdefault(digest, key)
    if not digests:
        raise Refused("none of the benign images can be scored: name an archive of X-ray images of bags")
    return [
        Bags(
            np.stack([form[key][1] for key in digests.values()]),
            np.stack([form[key][2] for key in digests.values()]),
        )
        for form in forms
    ]


@dataclass(frozen=True)
class Parts:
    """How images are used, as positions [k] in the order of the archive."""

    fitted: Index  # standardization and BiGAN learn from these
    held: Index  # operating points are set on these
    trimmed: Index  # threats, most likely, and in neither of the above


def divide(logits: Floats) -> Parts:
    """Divide images into STRETCHES consecutive stretches, of which every other one is held out.

    Views of one bag mostly follow each other, so that few bags are in both parts, and both cover the whole
    archive. Images that `outlying` names are left out.
    """
    out = outlying(logits)
    held = np.arange(len(logits)) * STRETCHES // len(logits) % 2 == 1
    return Parts(*map(np.flatnonzero, (~held & ~out, held & ~out, out)))


def outlying(logits: Floats) -> Flags:
    """Tell which images [n] the classes set clearly apart from the rest, by their largest logit.

    The upper half of harmless bags falls off about exponentially. An exponential through their median and
    their 90th percentile gives the logit that a share RARE of them exceeds; what lies above is trimmed. Both
    quantiles, and so the limit, stand threats of up to a twentieth of the images, whatever these score.
    """
    largest = logits.max(axis=1)
    median, high = np.quantile(largest, (0.5, 0.9))
    return largest > median + (high - median) * np.log(0.5 / RARE) / np.log(0.5 / 0.1)
