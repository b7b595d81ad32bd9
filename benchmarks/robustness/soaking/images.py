"""Mutants of images, decoded twice over memory of two patterns, and read by Pillow, too."""

import ctypes
import io
import random
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder, decoder
from gbad_batch.engine.row import Row

from .mutating import mutated
from .seeds_of_images import Array, sound_images
from .tally import Tally

PATTERNS = (0x5A, 0xC3)  # of fresh memory: a pixel that nobody wrote differs between the two
MOST_PIXELS = 1 << 20
LEVELS = 2.0  # of mean difference to Pillow's pixels
M_PERTURB = -6  # malloc.h: fill memory that is handed out
SETS = 8  # of sound images, each with other sides and colours


class ImageMutants:
    """Makes mutants by number, and judges what the decoder says of each."""

    counted = "mutants"

    def __init__(self, seed: int, folder: Path):
        self._seed, self._folder = seed, folder
        self._sound = sound_images(np.random.default_rng(seed % SETS))
        self._decoder = Decoder(None, DecodeLimits(max_pixels=MOST_PIXELS))
        self._libc = ctypes.CDLL(None)
        decoder.ROOM_BYTES = 1 << 16  # looked for before a second try: with a pattern it takes 20 ms to fill
        warnings.simplefilter("ignore")  # Pillow's, of bombs and of odd tags
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS

    def mutant(self, number: int) -> tuple[str, bytes]:
        """Give the (format, bytes) of a mutant."""
        luck = random.Random(f"{self._seed}/{number}")
        form, data = luck.choice(self._sound)
        return form, mutated(luck, data, form)

    def __call__(self, number: int, tally: Tally) -> None:
        """Decode a mutant, and count what is wrong; then its bytes are written to the folder."""
        form, data = self.mutant(number)
        found = Tally()
        self._judge(number, form, data, found)
        tally.add(found)
        if found.findings:
            (self._folder / f"{number}.{form}").write_bytes(data)

    def _judge(self, number: int, form: str, data: bytes, tally: Tally) -> None:
        where = {"seed": self._seed, "number": number, "format": form}
        tally.counts["mutants"] += 1
        tally.counts[f"mutants of {form}"] += 1
        rows, decoded = zip(*(self._decoded(data, pattern) for pattern in PATTERNS), strict=True)
        row = rows[0]
        first, second = decoded
        if not isinstance(row, Row):
            tally.find("unhandled", repr(row), **where)
            return
        tally.counts[f"said {row.status}"] += 1
        if first is None:
            return
        if second is None or not np.array_equal(first, second):
            tally.find("unwritten", f"two decodings differ: {row.warnings or 'no warning'}", **where)
            return
        self._compare(row, first, data, tally, where)

    def _decoded(self, data: bytes, pattern: int) -> tuple[Row | Exception, Array | None]:
        """Decode with fresh memory, and what the decoder keeps, full of a pattern."""
        self._libc.mallopt(M_PERTURB, pattern)
        row = Row("mutant")
        try:
            return row, self._decoder(row, data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it should have become a row
            return error, None
        finally:
            self._libc.mallopt(M_PERTURB, 0)

    def _compare(self, row: Row, pixels: Array, data: bytes, tally: Tally, where: dict[str, object]) -> None:
        other = pillows(data, has_alpha=row.color in ("rgba", "gray+alpha"))
        if other is None:
            tally.counts[
                "only we read it" if row.warnings is None else "only we read it, with a warning"
            ] += 1
            return
        tally.counts["both read it"] += 1
        if other.shape != pixels.shape:
            what = f"{pixels.shape} and Pillow's {other.shape}"
        elif (apart := float(np.abs(pixels.astype(int) - other.astype(int)).mean())) > LEVELS:
            what = f"{apart:.1f} levels from Pillow's {row.color} {row.bit_depth}"
        else:
            return
        kind = "misread" if row.warnings is None else "misread with a warning"
        tally.find(kind, f"{what}: {row.warnings}", **where)


def pillows(data: bytes, has_alpha: bool = False) -> Array | None:
    """Read a picture by Pillow as the policy of gbad_batch.engine.decode wants it; None if it cannot."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if _misreads(image, data) or (has_alpha and not image.has_transparency_data):
                return None
            return _by_policy(image)
    except Exception:  # noqa: BLE001 - it has no opinion
        return None


def _misreads(image: Image.Image, data: bytes) -> bool:
    """Know what Pillow reads wrong.

    That is tRNS above the depth, 16 bits with a key or 0 as white, two meanings, and a palette of 8 bits.
    """
    wide = image.mode.startswith("I;16")
    if image.format == "PNG" and "transparency" in image.info:
        at = data.find(b"tRNS")
        values = data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at], "big")]
        return wide or (
            image.mode in ("1", "L", "RGB")
            and (any(values[::2]) or (image.mode == "1" and max(values, default=0) > 1))
        )
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        white, palette = tags.get(262), tags.get(320, (256,))
        return isinstance(white, tuple) or (wide and white == 0) or max(palette) < 256
    return False


def _by_policy(image: Image.Image) -> Array | None:
    if image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        gray = ((wide + 128) // 257).astype(np.uint8)
        return np.dstack([gray] * 3)
    if image.mode == "RGBA":
        stored = np.asarray(image).astype(np.uint32)
        alpha = stored[..., 3:]
        return (255 - ((255 - stored[..., :3]) * alpha + 127) // 255).astype(np.uint8)
    if image.mode in ("1", "L", "P", "RGB", "CMYK"):
        return np.asarray(image.convert("RGB"))
    return None  # modes that are not read here
