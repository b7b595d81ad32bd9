"""A model in memory: rows of bytes, paths, arrays and PIL images, equal to those of a scan."""

import io
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gbad_batch import Model, Refused, Row, Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.results import frame

NO_FILE: dict[str, Any] = {"uri": "", "bytes": None, "mtime": None, "sha256": None, "format": None}


def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images, more than a batch, of several formats, and three that cannot be scored."""
    folder = tmp_path_factory.mktemp("archive")
    image = Image.fromarray(pixels())
    for name in ("a.png", "b.jpg", "c.webp", "d.tif", "e.bmp", "f.png", "g.png", "h.png", "i.png"):
        image.save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:700])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def model(tiny_bundle: Bundle) -> Iterator[Model]:
    with Model.open(tiny_bundle.path, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def scanned(archive: Path, tiny_bundle: Bundle) -> list[Row]:
    return list(Scan(ScanSettings(sources=(archive,), model=tiny_bundle.path)).rows())


def test_paths_and_bytes_give_the_rows_of_a_scan_to_the_bit(
    model: Model, archive: Path, scanned: list[Row]
) -> None:
    paths = sorted(archive.iterdir())
    assert model.score(paths) == scanned
    assert [row.status for row in scanned].count("ok") == 9
    in_memory = model.score([path.read_bytes() for path in paths])
    assert [row.uri for row in in_memory] == [f"memory:{k}" for k in range(12)]
    here = {"uri": "", "mtime": None}
    assert [replace(row, **here) for row in in_memory] == [replace(row, **here) for row in scanned]


def test_pixels_in_memory_give_the_scores_of_a_file_without_loss(model: Model, scanned: list[Row]) -> None:
    opened = Image.open(io.BytesIO(_png(pixels())))
    whole = replace(scanned[0], **NO_FILE)  # a.png
    rows = model.score([pixels(), Image.fromarray(pixels()), opened])
    assert [replace(row, uri="") for row in rows] == [whole] * 3
    gray, clear = model.score([pixels()[:, :, 0], Image.new("RGBA", (30, 20))])
    assert (gray.color, clear.color, clear.status) == ("gray", "rgba", "ok")


def test_what_is_missing_or_too_large_is_a_row(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with Model(ScanSettings(model=tiny_bundle.path, device="cpu", max_pixels=1000)) as model:
        rows = model.score([tmp_path / "absent.png", b"", pixels()])
    assert [row.status for row in rows] == ["vanished", "empty", "too_large"]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (pixels().astype(np.float32), r"image 0 is float32 \[40, 50, 3\]: give uint8"),
        (pixels()[:, :, :2], r"image 0 is uint8 \[40, 50, 2\]"),
        (Image.new("CMYK", (9, 9)), "image 0 has the mode CMYK: convert it"),
        (7, "image 0 is a int"),
        ("/", "is a folder or an archive"),
    ],
)
def test_what_is_no_image_is_refused(model: Model, image: Any, told: str) -> None:
    with pytest.raises(Refused, match=told):
        model.score([image])


def test_one_image_alone_is_refused(model: Model) -> None:
    with pytest.raises(Refused, match="put it in"):
        model.score(_png(pixels()))  # type: ignore[arg-type]


def test_rows_become_a_frame_of_what_is_installed(
    scanned: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [row.uri for row in scanned]
    for package in ("pandas", "polars", "pyarrow"):
        monkeypatch.setattr(frame, "find_spec", lambda name, only=package: name == only)
        if find_spec(package):
            found = frame.frame_of(scanned)
            assert type(found).__module__.partition(".")[0] == package
            assert [str(uri) for uri in found["uri"]] == uris


def _png(values: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    return file.getvalue()
