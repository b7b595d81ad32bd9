"""Images in folders that are named by class."""

from pathlib import Path

from ..errors import Refused
from .classes import ClassMap
from .joining import find_images
from .labels import Gathered, Labels


def read_folders(path: Path, classes: ClassMap) -> Labels:
    """Read the class of each image from the folder that it lies in; names are paths below `path`.

    Raises Refused for a folder whose class is unknown, and for an image outside any.
    """
    gathered = Gathered()
    for image in find_images(path):
        name = image.relative_to(path)
        if len(name.parts) == 1:
            raise Refused(
                f"{image} lies in no folder named by its class; move it into one, or name a label file."
            )
        threat = classes(name.parts[-2], f"folder {image.parent}")
        gathered.add(name.as_posix(), {threat} if threat else (), str(image))
    return gathered.labels(path)
