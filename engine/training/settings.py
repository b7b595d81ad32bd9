"""What a training is asked to do, and how the command line says it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..model.architecture import Architecture
from .data import Shares
from .phases.phase1 import Phase1Settings, Stage
from .phases.phase2 import Phase2Settings
from .phases.phase3 import Phase3Settings

PHASES = (1, 2, 3)
HUB = Path("hub")  # in place of a file: the weights that timm fetches


@dataclass(frozen=True)
class TrainSettings:
    """What is trained, on what, and where the bundle goes."""

    labels: Path  # in any form that `read_labels` knows
    images: Path  # the folder below which its images lie
    out: Path  # the bundle's folder, new
    run: Path  # the run's own folder: checkpoints, features, figures
    form: str = "auto"  # of the labels
    class_map: Path | None = None  # other names of classes
    name: str = "gbad"  # of the bundle
    seed: int = 0
    threads: int = 0  # of torch; 0 takes the cores that may be used; another number changes last bits
    device: str = "cpu"  # of torch
    data: str = "images of its owner"  # what it was trained on, for the card
    demo: bool = False  # those images are synthetic
    shares: Shares = field(default_factory=Shares)
    phases: tuple[int, ...] = PHASES
    gate_images: int = 256  # synthetic images that every engine is compared on
    int8_images: int = 300  # training images that INT8's ranges are found on; 0: the bundle gets no INT8 form
    backbone_weights: Path | None = None  # ImageNet weights of the backbone; HUB: those that timm fetches
    projected: int = 0  # training images to make by projecting threats into benign ones
    projected_from: Path | None = None  # grey pictures of threats, or SYNTH; None: the boxes of the labels
    start: Path | None = None  # a bundle whose backbone and pyramid phase I starts from
    architecture: Architecture = field(default_factory=Architecture)
    phase1: Phase1Settings = field(default_factory=Phase1Settings)
    phase2: Phase2Settings = field(default_factory=Phase2Settings)
    phase3: Phase3Settings = field(default_factory=Phase3Settings)


def train_settings(dataset: Path, **given: Any) -> TrainSettings:
    """Make the settings of `gbad-batch train`; raises Refused for values that cannot be."""
    folder = dataset if dataset.is_dir() else dataset.parent
    phases = tuple(sorted(set(given["phases"])))
    synthetic = (folder / "synth.json").exists()
    if given["project_from"] is not None and not given["project"]:
        raise Refused("--project-from says what to project: say into how many images by --project N")
    return TrainSettings(
        labels=given["labels"] or dataset,
        images=folder,
        out=given["out"],
        run=given["run"],
        form=given["form"],
        class_map=given["class_map"],
        name=given["name"] or given["out"].name,
        seed=given["seed"],
        threads=given["threads"],
        device=_device(given["device"]),
        demo=synthetic,
        data="synthetic X-ray images of `gbad-batch synth`" if synthetic else "images of its owner",
        phases=phases or PHASES,
        backbone_weights=given["weights"],
        start=given["start"],
        projected=given["project"],
        projected_from=given["project_from"],
        architecture=Architecture(backbone=given["backbone"], input_size=given["image_size"]),
        phase1=Phase1Settings(
            stages=_stages(given["stages"]),
            batch_size=given["batch_size"],
            optimizer=given["optimizer"],
            learning_rate=given["learning_rate"],
            balance_classes=given["pos_weight"],
            places=given["places"],
            mixed=given["mixed"],
        ),
        phase2=Phase2Settings(steps=given["bigan_steps"]),
        phase3=Phase3Settings(heldout=given["phase3"] == "heldout"),
    )


def _stages(text: str) -> tuple[Stage, ...]:
    """Read 128:10:0.5,256:5 as ten epochs at 128 pixels, of half of each side, and five at 256."""
    try:
        fields = [each.split(":") for each in text.split(",")]
        stages = tuple(Stage(int(size), int(epochs), *map(float, window)) for size, epochs, *window in fields)
    except (TypeError, ValueError):
        raise Refused(f"--stages {text!r} is not SIZE:EPOCHS[:WINDOW],... such as 128:10,256:5") from None
    if any(size < 32 or epochs < 1 or not 0 < window <= 1 for size, epochs, window in stages):
        raise Refused(
            f"--stages {text!r}: sizes are 32 pixels or more, epochs 1 or more, windows above 0 and at most 1"
        )
    return stages


def _device(name: str) -> str:
    """Resolve auto, and refuse a GPU that is not there."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refused(f"--device {name!r} is unknown: auto, cpu or cuda[:N]") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise Refused(f"--device {name} cannot be used here: torch finds no such device; --device cpu can")
    return f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"
