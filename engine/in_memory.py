"""One model in memory: rows, as a scan gives them, for images that a program holds or names."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, Union

from .decode import DecodeLimits
from .decode.coded_image import set_size
from .decode.isolated import IsolatedDecoder
from .errors import Refused
from .results.schema import results_schema, rows_of, to_batch
from .row import ImageFault, Row
from .settings import ScanSettings, StrPath
from .sources import named_image
from .sources.storage import check_length
from .stages.plan import WorkPlan
from .stages.scorer import Scorer
from .system.machine import usable_cores
from .text import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

AnyImage = Union[bytes, StrPath, "NDArray[np.uint8]", "Image"]

BATCH = 8  # images that are decoded and scored at a time
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of a PIL image, that are stored without loss
SHAPES = "[height, width], or [height, width, 3] or [height, width, 4] for RGB and RGBA"


class Model:
    """A trained model that is open for scoring; a context manager.

    Images are decoded in a process of their own, which a bad image may crash or hang without harm.
    """

    def __init__(self, settings: ScanSettings):
        self._turn = Lock()  # one call at a time
        self._limits = DecodeLimits(settings.max_pixels, settings.max_file_size)
        cores = settings.threads or usable_cores()
        self._scorer = Scorer(settings, WorkPlan(BATCH, workers=1, threads=1, cores=cores))
        self._decode = IsolatedDecoder(self._scorer.input_size, self._limits, settings.decode_timeout)

    @classmethod
    def open(cls, path: StrPath | None = None, device: str = "auto") -> Self:
        """Open the bundle at `path` (None: the demo model) on a device: auto, cpu or cuda[:N].

        Raises Refused if the bundle, its engine or the device cannot be used. `Model(ScanSettings(...))` also
        takes the other settings of a scan on its model, alarms and limits.
        """
        return cls(ScanSettings(model=path, device=device))

    def score(self, images: Iterable[AnyImage]) -> list[Row]:
        """Score images; returns a row for each, in their order, with a status where there is no score.

        An image is a file's bytes, the path of one file, a uint8 array [height, width], or [height, width, 3]
        or [height, width, 4] for RGB and RGBA, or a PIL image. Rows equal those of a scan on a CPU with the
        same settings; what a path, or a file, would say is null where there is none, and `uri` is then
        `memory:N`, with N its place. Raises Refused for what is no image, Stopped if the machine fails.
        """
        if isinstance(images, str | bytes | os.PathLike):
            raise Refused(f"score takes a list of images, not a single {type(images).__name__}: put it in []")
        rows: list[Row] = []
        remaining = iter(images)
        with self._turn:
            while batch := list(islice(remaining, BATCH)):
                rows += self._scored(batch, len(rows))
        return rows

    def close(self) -> None:
        """Close the engine and end the decoder's process."""
        self._decode.close()
        self._scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _scored(self, images: Sequence[AnyImage], first: int) -> list[Row]:
        """Return the rows of a batch whose first image has this place."""
        import numpy as np

        rows, scored, pixels = [], list[Row](), []
        for place, image in enumerate(images, first):
            row, content = self._read(image, place)
            rows.append(row)
            decoded = None if content is None else self._decode(row, content)
            if not isinstance(image, bytes | str | os.PathLike):
                row.format = None  # that in which its pixels went to the decoder
            if decoded is not None:
                scored.append(row)
                pixels.append(decoded)
        if scored:
            self._scorer(scored, np.stack(pixels))
        return rows_of(to_batch(rows, results_schema()))

    def _read(self, image: AnyImage, place: int) -> tuple[Row, bytes | None]:
        """Return the row of an image and the file to decode; None if the row has a status."""
        row, most = Row(f"memory:{place}"), self._limits.max_file_size
        try:
            if isinstance(image, str | os.PathLike):
                candidate = named_image(image, most)
                row = candidate.row
                if row.status is not None:
                    return row, None
                content = candidate.read(most)
            elif isinstance(image, bytes):
                row.bytes = len(image)
                check_length(len(image), most)
                content = image
            else:
                return row, self._encoded(row, _as_pil(image, place))
        except ImageFault as fault:
            row.fail(fault)
            return row, None
        row.sha256 = hashlib.sha256(content).digest()
        return row, content

    def _encoded(self, row: Row, image: "Image") -> bytes:
        """Encode pixels without loss, for the decoder to treat them as it treats those of a file."""
        set_size(row, image.width, image.height, self._limits)
        file = io.BytesIO()
        try:
            image.save(file, "png", compress_level=0)
        except (OSError, ValueError, SyntaxError) as error:  # a file that Pillow opened reads its pixels now
            raise ImageFault("undecodable", f"Pillow cannot load it: {one_line(error)}") from error
        return file.getvalue()


def _as_pil(image: Any, place: int) -> "Image":
    """Return pixels as a PIL image; raises Refused for what they are not."""
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        if image.mode in MODES:
            return image
        raise Refused(f"image {place} has the mode {image.mode}: convert it, for instance to RGB")
    if not isinstance(image, np.ndarray):
        raise Refused(
            f"image {place} is a {type(image).__name__}: give bytes, a path, a uint8 array or a PIL image"
        )
    shape = image.shape
    if image.dtype != np.uint8 or not image.size or shape[2:] not in ((), (3,), (4,)) or len(shape) < 2:
        raise Refused(f"image {place} is {image.dtype} {list(shape)}: give uint8 {SHAPES}")
    return Image.fromarray(np.ascontiguousarray(image))
