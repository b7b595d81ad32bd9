"""Labelled data sets in any format: read their labels (`read_labels`) and match them to images (`join`).

Nothing here needs torch, and no image is decoded before every label file has been read without error.

- `sixray`: a CSV list `name,Gun,Knife,Wrench,Pliers,Scissors` of 1 and -1;
- `table`: CSV or Parquet with `path` or `name`, the five threats, optionally `split` and `group`;
- `voc`: a folder of Pascal VOC XML, as SIXray's boxes are;
- `boxes`: a folder of text, a line an object, as OPIXray and HiXray have it;
- `coco`: JSON of images, annotations and categories, as PIDray, CLCXray and `gbad-batch synth` write it;
- `folders`: images in folders named by class.
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import Refused
from ..sources.names import IMAGE_EXTENSIONS, extension_of
from .boxes import read_boxes, read_voc
from .classes import ClassMap, read_class_map
from .coco import read_coco
from .joining import find_images, join
from .labels import Box, Gathered, Labels
from .tables import SIXRAY_HEADER, first_line, read_sixray, read_table

__all__ = ["FORMS", "Box", "Labels", "find_images", "join", "read_labels"]

DEFAULT_LIST = "labels.csv"  # of a folder that holds one


def read_folders(path: Path, classes: ClassMap) -> Labels:
    """Read the class of each image from the name of its folder; names are paths relative to `path`.

    Raises Refused for a folder whose class is unknown, and for an image outside such a folder.
    """
    gathered = Gathered()
    for image in find_images(path):
        name = image.relative_to(path)
        if len(name.parts) == 1:
            raise Refused(
                f"{image} is not in a folder named by its class; move it into one, or name a label file"
            )
        threat = classes(name.parts[-2], f"folder {image.parent}")
        gathered.add(name.as_posix(), {threat} if threat else (), str(image))
    return gathered.labels(path)


_BY_SUFFIX = {".parquet": "table", ".json": "coco", ".xml": "voc", ".txt": "boxes"}
_READERS: dict[str, Callable[[Path, ClassMap], Labels]] = {
    "sixray": lambda path, _: read_sixray(path),
    "table": lambda path, _: read_table(path),
    "voc": read_voc,
    "boxes": read_boxes,
    "coco": read_coco,
    "folders": read_folders,
}
FORMS = tuple(_READERS)


def read_labels(path: Path, form: str = "auto", class_map: Path | None = None) -> Labels:
    """Read all labels of a data set, before any image is decoded.

    `path` is a label file or a folder; in a folder that holds `labels.csv`, that file is read. `form` is one
    of FORMS, or auto, which detects it. `class_map` is a TOML file with a table [classes], other name =
    "knife" or "ignore". Raises Refused, with file and line, for labels that cannot be read.
    """
    classes = read_class_map(class_map)
    file = path / DEFAULT_LIST if form in ("auto", "sixray", "table") and path.is_dir() else path
    path = file if file.exists() else path
    if not path.exists():
        raise Refused(f"{path} does not exist; name a label file or the folder of a data set")
    chosen = detect_form(path) if form == "auto" else form
    if chosen not in _READERS:
        raise Refused(f"the format {form!r} is unknown; choose from {', '.join(FORMS)}")
    labels = _READERS[chosen](path, classes)
    classes.check()
    return labels


def detect_form(path: Path) -> str:
    """Detect the format of a label file or folder; raises Refused if it is ambiguous."""
    return _form_of_folder(path) if path.is_dir() else _form_of_file(path)


def _form_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "sixray" if first_line(path) == SIXRAY_HEADER else "table"
    if suffix not in _BY_SUFFIX:
        raise Refused(f"the format of {path} cannot be detected; say --form {' or '.join(FORMS)}")
    return _BY_SUFFIX[suffix]


def _form_of_folder(path: Path) -> str:
    """Detect the format from the kinds of files below a folder; images may lie beside annotations."""
    kinds = {extension_of(file.name.encode(errors="replace")).lower() for file in path.rglob("*.*")}
    forms = [form for kind, form in ((b"xml", "voc"), (b"txt", "boxes")) if kind in kinds]
    if not forms and kinds & IMAGE_EXTENSIONS:
        return "folders"
    if len(forms) == 1 and b"json" not in kinds:
        return forms[0]
    held = ", ".join(sorted(kind.decode(errors="replace") for kind in kinds if kind)) or "nothing known"
    choice = f", or say --form {' or '.join(forms)}" if forms else ""
    raise Refused(f"the format of the folder {path} cannot be detected ({held}); name the label file{choice}")
