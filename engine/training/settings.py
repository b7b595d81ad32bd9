"""Settings of a training, by phase, which the command line fills and takes its defaults from.

Nothing here loads torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Refused
from ..model.architecture import MAP_MAX, Architecture

PHASES = (1, 2, 3)
MOST_PASSES, LEAST_STEPS = 100, 300  # of phase II through a site's own images
MIXED = 1000  # synthetic images beside those of a site, if training starts from a bundle
IMAGENET = Path("imagenet")  # in place of a weights file: a package's weights, else those that timm downloads
SMALLEST_SIDE = 32  # pixels; the last map of a backbone is 32 times smaller than its image
INPUT_SIZES = range(64, 2049, 32)  # pixels a side: sides at which each map of a backbone is twice the next


@dataclass(frozen=True)
class Shares:
    """Share of a data set for each split; the rest is for training."""

    validation: float = 0.10
    """Share of all images."""
    calibration: float = 0.20
    """Share of benign images."""
    test: float = 0.15
    """Share of all images."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes to an image in training."""

    flip: float = 0.5
    """Probability of a left-right flip."""
    rotation: float = 10.0
    """Degrees, either way."""
    shift: float = 0.05
    """Share of the side, either way."""
    scale: float = 0.10
    """Share of the size, either way."""
    shear: float = 5.0
    """Degrees, either way."""
    turn: float = 0.0
    """Probability of a top-bottom flip, and of exchanging rows and columns: bags lie as they like."""
    look: float = 0.0
    """Probability of the look of another scanner, as `training.look` draws it."""


class Stage(NamedTuple):
    """Some epochs of phase I at one image size."""

    size: int
    """Pixels a side."""
    epochs: int
    """Epochs at this size."""
    window: float = 1.0
    """Visible share of each side; below 1, only the part around a boxed threat."""

    def __str__(self) -> str:
        """Format the stage as `--stages` takes it."""
        return f"{self.size}:{self.epochs}" + (f":{self.window:g}" if self.window < 1 else "")


@dataclass(frozen=True)
class Phase1Settings:
    """How the network is trained, by AdamW on binary cross-entropy."""

    stages: tuple[Stage, ...] = (Stage(128, 10), Stage(256, 5))
    """Image sizes, growing, and the epochs at each."""
    batch_size: int = 32
    """Images."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Of the weights of layers; biases and norms are not decayed."""
    warm_up: float = 0.05
    """Share of all steps in which the learning rate rises."""
    clip_norm: float = 5.0
    """Largest norm of the gradient."""
    average_decay: float = 0.998
    """Of the moving average of the weights, whose figures are observed and which ships."""
    localization: float = 0.0
    """Weight of the loss of where threats lie, which needs their boxes; 0 leaves it out."""
    patience: int = 3
    """Epochs of the last stage without a better validation mAP before training ends."""
    watched: int = 1024
    """Images of training, and as many of validation, on which figures are taken."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How images are moved at random."""

    @property
    def by_epoch(self) -> list[Stage]:
        """Return the stage of each epoch."""
        return [stage for stage in self.stages for _ in range(stage.epochs)]

    @property
    def needs_boxes(self) -> bool:
        """Tell whether training uses boxes, for windows or localization."""
        return self.localization > 0 or any(stage.window < 1 for stage in self.stages)


@dataclass(frozen=True)
class Phase2Settings:
    """How the BiGAN is trained, by Adam."""

    steps: int = 4000
    """Steps of one batch."""
    batch_size: int = 64
    """Feature vectors."""
    rate_discriminator: float = 1e-4
    """Learning rate of D at the first step; all rates fall to zero by a cosine."""
    rate_generator: float = 1e-3
    """Learning rate of E and G at the first step."""
    reconstruction: float = 10.0
    """Weight of mean |s - G(E(s))| in the loss of E and G."""
    real_label: float = 0.9
    """Target of D for real pairs, smoothed."""
    adversarial: float = 1.0
    """Weight of the adversarial term; 0 trains E and G as a plain autoencoder."""
    average_decay: float = 0.995
    """Of the moving average of E and G."""
    watched: int = 500
    """Last steps that the check for a collapse looks at."""
    enough: int = 5000
    """Benign images below which a collapse is only warned of."""

    def for_few(self, images: int) -> "Phase2Settings":
        """Return the settings for a site's own images, of which a few would else be learned by heart."""
        steps = max(LEAST_STEPS, images * MOST_PASSES // self.batch_size)
        return replace(self, steps=min(self.steps, steps))


@dataclass(frozen=True)
class Phase3Settings:
    """How decisions are fitted and operating points set."""

    costs: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Values of C that are tried."""
    gammas: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Values of gamma that are tried for an RBF kernel, beside a linear one."""
    search_benign: int = 5000
    """Benign images of the sample that the search runs on."""
    search_positive: int = 1000
    """Positive images of that sample."""
    largest_pfa: float = 0.05
    """False-alarm rate up to which the ROCs of candidates are compared."""
    pfas: tuple[float, ...] = (0.01, 0.02, 0.05, 0.10)
    """False-alarm rates of the operating points."""
    support_events: int = 100
    """Benign images above a threshold from which on it is well known."""
    heldout: bool = False
    """Fit the SVM of `gbad` on images that no phase has seen, instead of training images as in the report."""


@dataclass(frozen=True)
class QuantizeSettings:
    """How a network is quantized to INT8."""

    image_count: int = 300
    """Number of images whose activations give the ranges of the maps."""
    seed: int = 0
    """Seed for choosing these images, if there are more."""
    overflow_fix: str = "enable"
    """Whether weights are held to 7 bits, as `export.to_int8.quantize` explains."""


@dataclass(frozen=True)
class TrainSettings:
    """What to train, on which images, and where to write the bundle."""

    labels: Path
    """A label file or folder in any form that `read_labels` reads."""
    image_folder: Path
    """The folder that holds the images, at any depth."""
    out: Path
    """The bundle's folder, new."""
    run: Path
    """The run folder: checkpoints, features, figures."""
    form: str = "auto"
    """Label format; `auto` detects it."""
    class_map: Path | None = None
    """TOML file that maps other class names to the five threats."""
    name: str = "gbad"
    """Name of the bundle."""
    seed: int = 0
    """Seed of all random numbers."""
    threads: int = 0
    """Threads of torch; 0 takes all usable cores. Another number changes the last bits of the weights."""
    device: str = "cpu"
    """Device of torch: `cpu` or `cuda:N`."""
    data: str = "images of its owner"
    """What the model was trained on, for its card."""
    demo: bool = False
    """Whether those images are synthetic."""
    shares: Shares = field(default_factory=Shares)
    """How images are dealt into splits."""
    phases: tuple[int, ...] = PHASES
    """Which phases run."""
    gate_image_count: int = 256
    """Synthetic images in the bundle that every engine is compared on."""
    int8_image_count: int = QuantizeSettings.image_count
    """Training images that INT8 is quantized on; 0 leaves the INT8 form out."""
    backbone_weights: Path | None = None
    """File of weights of the backbone; IMAGENET takes those of an installed package or timm's."""
    projected: int = 0
    """Training images to make by projecting threats into benign ones."""
    projected_from: Path | None = None
    """Grey pictures of threats, or SYNTH; None cuts threats out of the labels' boxes."""
    start: Path | None = None
    """A bundle whose network phase I starts from."""
    mixed: int = 0
    """Synthetic images to draw and mix into phase I, so that no class is forgotten; 0 mixes none in."""
    epoch_images: tuple[int, int] = (1200, 400)
    """Images of the data set, and synthetic ones, in an epoch into which these are mixed."""
    architecture: Architecture = field(default_factory=lambda: Architecture(head=MAP_MAX))
    """Sizes of the networks."""
    phase1: Phase1Settings = field(default_factory=Phase1Settings)
    """Settings of phase I."""
    phase2: Phase2Settings = field(default_factory=Phase2Settings)
    """Settings of phase II."""
    phase3: Phase3Settings = field(default_factory=Phase3Settings)
    """Settings of phase III."""


def train_settings(dataset: Path, **given: Any) -> TrainSettings:
    """Make the settings of `gbad-batch train` from its options; raises Refused for invalid values."""
    folder = dataset if dataset.is_dir() else dataset.parent
    start, architecture, mixed = given["start"], _architecture(given), given["synthetic"]
    mixed = (MIXED if start else 0) if mixed is None else mixed
    synthetic = (folder / "synth.json").exists()
    if given["project_from"] is not None and not given["project"]:
        raise Refused(
            "--project-from names threats to project: add --project N, the number of images to make"
        )
    return TrainSettings(
        labels=given["labels"] or dataset,
        image_folder=folder,
        out=given["out"],
        run=given["run"],
        form=given["form"],
        class_map=given["class_map"],
        name=given["name"] or given["out"].name,
        seed=given["seed"],
        threads=given["threads"],
        device=_device(given["device"]),
        demo=synthetic,
        data="synthetic X-ray images of `gbad-batch synth`" if synthetic else TrainSettings.data,
        phases=tuple(sorted(set(given["phases"]))) or PHASES,
        backbone_weights=given["weights"],
        start=start,
        mixed=mixed,
        projected=given["project"],
        projected_from=given["project_from"],
        architecture=architecture,
        phase1=_phase1(given, architecture, mixed),
        phase2=Phase2Settings(steps=given["bigan_steps"]),
        phase3=Phase3Settings(heldout=given["phase3"] == "heldout"),
    )


def _architecture(given: Mapping[str, Any]) -> Architecture:
    """Return the architecture: that of the bundle to start from, if there is one; raises Refused."""
    backbone, size = given["backbone"], given["image_size"]
    if given["start"] is None:
        return Architecture(
            backbone=backbone or Architecture.backbone,
            input_size=image_size(size or Architecture.input_size),
            head=MAP_MAX,
        )
    from ..bundle import Bundle

    theirs = Bundle.read(given["start"]).manifest.architecture
    if backbone not in (None, theirs.backbone):
        raise Refused(
            f"--backbone {backbone} is not that of {given['start']}, which is {theirs.backbone}: leave it out"
        )
    return theirs if size is None else replace(theirs, input_size=image_size(size))


def _phase1(given: Mapping[str, Any], architecture: Architecture, mixed: int) -> Phase1Settings:
    """Return the settings of phase I: what was given, else what suits the beginning."""
    usual = Phase1Settings() if given["start"] is None else from_bundle(architecture, mixed)
    chosen = {
        "stages": given["stages"] and parse_stages(given["stages"]),
        "batch_size": given["batch_size"],
        "learning_rate": given["learning_rate"],
        "localization": given["places"],
    }
    return replace(usual, **{name: value for name, value in chosen.items() if value is not None})


def from_bundle(architecture: Architecture, mixed: int) -> Phase1Settings:
    """Return how phase I goes on from the network of a bundle, in about ten minutes on two cores.

    At the input size, the scale that the network knows: four epochs at two thirds of it and a last one here
    take as long, and bring less. Synthetic images have boxes, so that a class map goes on learning places.
    """
    return Phase1Settings(
        stages=(Stage(architecture.input_size, 3),),
        watched=128,
        learning_rate=1e-3,
        localization=1.0 if architecture.has_map and mixed else 0.0,
        augmentation=Augmentation(scale=0.2, turn=0.5, look=0.3),
    )


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read 128:10:0.5,256:5 as ten epochs at 128 pixels, of half of each side, and five at 256."""
    try:
        parts = [stage.split(":") for stage in text.split(",")]
        stages = tuple(Stage(int(size), int(epochs), *map(float, window)) for size, epochs, *window in parts)
    except (TypeError, ValueError):
        raise Refused(f"--stages {text!r} is not SIZE:EPOCHS[:WINDOW],... such as 128:10,256:5") from None
    if any(size < SMALLEST_SIDE or epochs < 1 or not 0 < window <= 1 for size, epochs, window in stages):
        raise Refused(
            f"--stages {text!r} is out of range: sizes are {SMALLEST_SIDE} pixels or more, epochs 1 or more, "
            "windows above 0 and at most 1"
        )
    return stages


def format_stages(stages: tuple[Stage, ...]) -> str:
    """Format stages as `--stages` takes them."""
    return ",".join(map(str, stages))


def image_size(size: int) -> int:
    """Return an input size; raises Refused for one at which no graph of the network can be made."""
    if size not in INPUT_SIZES:
        raise Refused(
            f"--image-size {size} is not a multiple of {INPUT_SIZES.step} from {INPUT_SIZES[0]} to "
            f"{INPUT_SIZES[-1]}, and networks halve their maps five times: give 256, 320 or 384, for example"
        )
    return size


def _device(name: str) -> str:
    """Resolve `auto`; raises Refused for a GPU that torch does not find."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refused(f"--device {name!r} is unknown: give auto, cpu or cuda[:N]") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise Refused(
            f"--device {name} cannot be used here, since torch finds no such device: give --device cpu"
        )
    return f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"
