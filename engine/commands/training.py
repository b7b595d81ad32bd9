"""The commands for models of one's own: data, train, adapt, quantize, typicality, evaluate."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..adaptation import ADAPTED_FROM
from ..errors import Refused
from ..model.architecture import Architecture
from ..text import counted
from ..training.settings import (
    MIXED,
    Phase1Settings,
    Phase2Settings,
    QuantizeSettings,
    TrainSettings,
    format_stages,
)
from .configuration import config_option
from .options import DEMO, WHAT_LABELS, need_extra, options


@click.group(epilog=DEMO)
def data() -> None:
    """Check labelled data sets before training, and convert their labels.

    \b
    gbad-batch data check bags/
    gbad-batch data convert labels.csv labels.json
    """


@data.command("check", epilog=DEMO)
@click.argument("dataset", type=click.Path(path_type=Path), metavar="DATASET")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labels of the images below DATASET.  [default: DATASET/labels.csv, else DATASET itself]",
)
@WHAT_LABELS
@click.option(
    "--test",
    "tests",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DATASET|FILE",
    help="Also look for duplicates between this set, or list of images below DATASET, and the rest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Write a plot of the labels.",
)
def data_check(as_json: bool, picture: Path | None, **given: Any) -> None:
    """Show what a data set holds, what is missing from it, and which images are duplicates.

    Counts images, labels, combinations and the true rate of positives; lists images that are missing on
    disk; decodes every image as a scan would; and looks for duplicates and near-duplicates within and
    between the lists and their splits, because a bag that was trained on tests nothing. Findings are not
    errors: the exit code is 0. Needs the train extra.

    DATASET is the folder of the images, or a label file beside them. Labels are SIXray's CSV, a CSV or
    Parquet table (path or name, gun, knife, wrench, pliers, scissors, optionally split and group), Pascal
    VOC XML, OPIXray's text boxes, COCO JSON, or folders named by class. Other class names need a class map:

    \b
    [classes]
    Dagger = "knife"
    Baton = "ignore"       not a threat; an image with no other label counts as benign

    \b
    gbad-batch data check bags/
    gbad-batch data check SIXray/images --labels train.csv --test test.csv --plot labels.png
    gbad-batch data check PIDray/train.json --class-map pidray.toml
    """
    need_extra("train", "imagehash", "matplotlib", "scipy")
    from ..datasets.check import CheckSettings, check
    from ..datasets.report import check_text, plot
    from .console import training_shown

    with training_shown() as progress:
        findings = check(CheckSettings(**given), progress)
    if picture is not None:
        plot(findings, picture)
    click.echo(json.dumps(asdict(findings), indent=2) if as_json else check_text(findings))


@data.command("convert", epilog=DEMO)
@click.argument("source", type=click.Path(path_type=Path), metavar="IN")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@WHAT_LABELS
@click.option(
    "--images",
    "image_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the images: adds their paths, and in JSON their sizes.",
)
def data_convert(source: Path, out: Path, **given: Any) -> None:
    """Convert the labels of IN, in any format, to OUT: .csv is SIXray's format, .json COCO's.

    A label without a box becomes an annotation without `bbox`. SIXray's format cannot hold boxes, splits
    or groups; the command reports what it dropped.

    \b
    gbad-batch data convert train.csv train.json
    gbad-batch data convert train.json again.csv               the same lines
    gbad-batch data convert OPIXray/train/annotation cutters.json --images OPIXray/train/image
    gbad-batch data convert PIDray/train.json pidray.csv --class-map pidray.toml
    """
    from ..datasets.convert import convert

    done = convert(source, out, **given)
    boxes = f", {done.boxes} boxes" if done.boxes else ""
    dropped = f"; a CSV cannot hold {' and '.join(done.dropped)}" if done.dropped else ""
    click.echo(f"{out}: {counted(done.images, 'image')}, {done.positives} with a threat{boxes}{dropped}")


_COMPUTING = options(
    click.option(
        "--threads",
        type=int,
        default=TrainSettings.threads,
        metavar="N",
        help="CPU threads.  [default: all usable cores]",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=TrainSettings.seed,
        show_default=True,
        help="Seed of all random numbers.",
    ),
)

_HOW_TO_TRAIN = options(
    click.option(
        "--backbone",
        help=f"Backbone, by its name in timm.  [default: {Architecture.backbone}, or that of --start]",
    ),
    click.option(
        "--image-size",
        type=int,
        help="Input size of the network in scans, in pixels per side.  [default: "
        f"{Architecture.input_size}, or that of --start]",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="imagenet|FILE",
        help="Weights that the backbone starts from. imagenet takes those of an installed package (extra: "
        "weights), or else downloads timm's; a FILE is as torchvision or timm store it.",
    ),
    click.option(
        "--start",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Start from the network of a bundle: a site's own labelled images take ten minutes then, and "
        "defaults marked * are others, chosen for that.",
    ),
    click.option(
        "--synthetic",
        type=click.IntRange(0),
        metavar="N",
        help="Draw N synthetic images and mix them into phase I, half and half, so that no class is "
        f"forgotten.  [default: 0, or {MIXED} with --start]",
    ),
    click.option(
        "--stages",
        metavar="SIZE:EPOCHS[:WINDOW],...",
        help="Image sizes of phase I, in growing order, and the epochs at each. A window below 1 shows only "
        "that share of each side, around a threat; it needs labels with boxes.  "
        f"[default: {format_stages(Phase1Settings.stages)} *]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(2),
        help=f"Images per batch of phase I.  [default: {Phase1Settings.batch_size}]",
    ),
    click.option(
        "--learning-rate",
        type=float,
        help=f"Peak learning rate of phase I.  [default: {Phase1Settings.learning_rate:g} *]",
    ),
    click.option(
        "--places",
        type=click.FloatRange(0),
        metavar="WEIGHT",
        help="Weight of a second loss in phase I, on where threats lie (1 for the default bundle), which the "
        "places of the class map learn. Needs labels with boxes, --project or --synthetic.  [default: 0 *]",
    ),
    click.option(
        "--project",
        type=click.IntRange(0),
        default=TrainSettings.projected,
        show_default=True,
        metavar="N",
        help="Threat image projection: add N benign training images with threats multiplied into them to "
        "the train split.",
    ),
    click.option(
        "--project-from",
        type=click.Path(path_type=Path),
        metavar="DIR|synth",
        help="Threats for --project: grey (single-energy) pictures of single objects on an even background, "
        "in folders named by class, or synth for rendered ones.  [default: the boxes of training images]",
    ),
    click.option(
        "--bigan-steps",
        type=click.IntRange(1),
        default=Phase2Settings.steps,
        show_default=True,
        help="Training steps of phase II.",
    ),
    click.option(
        "--phase3",
        type=click.Choice(["insample", "heldout"]),
        default="insample",
        show_default=True,
        help="Fit the SVM on losses of training images, as in the report, or of held-out images.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Device to train on."
    ),
    _COMPUTING,
)


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path), metavar="DATASET")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE", help="Folder to create."
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labels of the images below DATASET.  [default: DATASET/labels.csv, else DATASET itself]",
)
@WHAT_LABELS
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run folder for checkpoints, features and figures.  [default: BUNDLE.run]",
)
@click.option("--name", metavar="NAME", help="Name of the bundle.  [default: the name of its folder]")
@click.option(
    "--phase",
    "phases",
    type=click.IntRange(1, 3),
    multiple=True,
    metavar="N",
    help="Run only this phase, again if its settings changed. The run folder must hold the earlier phases.",
)
@_HOW_TO_TRAIN
@click.option(
    "--report-exact",
    is_flag=True,
    help="Run phase I as the report describes it (15 epochs at 256 pixels, no FPN): figures only, no bundle.",
)
@config_option("train")
def train(dataset: Path, run: Path | None, report_exact: bool, **given: Any) -> None:
    """Train a bundle on the images below DATASET, in the method's three phases.

    The classifier learns the five threats, the BiGAN the features of benign bags, and a support vector
    machine decides on its losses. Images are divided into four splits, one of them for training; a column
    `split` in a table of labels overrides this. If the command is killed, run it again to resume. Images
    written by `gbad-batch synth` give a bundle that is marked as a demo. Needs the train extra.

    The run folder holds checkpoints, features, metrics.jsonl, plots and TensorBoard's events.

    \b
    gbad-batch synth bags --count 8000 --positive 0.5
    gbad-batch train bags --backbone regnetx_004 --out my-bundle
    gbad-batch train bags --backbone tf_efficientnet_lite0 --weights imagenet --out my-bundle
    gbad-batch train SIXray/images --labels train.csv --weights resnext50.safetensors --out sixray
    gbad-batch train PIDray --labels PIDray/train.json --project 2000 --out projected
    gbad-batch train site/images --labels site.csv --start my-bundle --out site    ten minutes
    gbad-batch train bags --out my-bundle --phase 3 --phase3 heldout       repeats the last phase
    gbad-batch scan /archive --model my-bundle --out results.parquet
    """
    need_extra("train", "torch", "timm", "sklearn", "onnx", "onnxscript", "matplotlib")
    from ..system.machine import keep_freed_memory
    from ..training.reported import train_as_reported
    from ..training.run import train as train_bundle
    from ..training.settings import train_settings
    from .console import training_shown

    out = given["out"]
    settings = train_settings(dataset, run=run or _run_folder(out), **given)
    if settings.device != "cpu":
        need_extra("gpu", "nvidia.dali")
    keep_freed_memory()  # here, for a library's caller may want another malloc
    with training_shown() as progress, _resumable():
        if report_exact:
            lines = train_as_reported(settings, progress)
            click.echo(f"{settings.run}: figures of {len(lines)} epochs in metrics.jsonl, pictures in plots/")
            return
        bundle = train_bundle(settings, progress)
    if bundle is None:
        click.echo(f"{settings.run}: finished; run the next phase")
    else:
        click.echo(f"{bundle}: scan with --model {bundle}; its README.md says what it was trained on")


@contextmanager
def _resumable() -> Iterator[None]:
    """Have a training that is interrupted say how it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = ("training stopped on request; run the same command again to resume",)
        raise


def _run_folder(out: Path) -> Path:
    """Name the run folder of a bundle: beside it; raises Refused for a bundle that has no name."""
    whole = out if out.name else out.resolve()
    if not whole.name:
        raise Refused(f"--out {out} cannot be a bundle: name a folder to create")
    return whole.with_name(f"{whole.name}.run")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--benign",
    multiple=True,
    required=True,
    metavar="ARCHIVE",
    help="Folder, tar or file of your own bags, nearly all of them harmless; may be repeated.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE2", help="Folder to create."
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run folder for features and checkpoints.  [default: BUNDLE2.run]",
)
@click.option("--name", metavar="NAME", help="Name of the new bundle.  [default: the name of its folder]")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=ADAPTED_FROM,
    show_default=True,
    help="Use only the first N files. Choose ones that show all your lanes and days.",
)
@_COMPUTING
def adapt(bundle: Path, benign: tuple[str, ...], run: Path | None, name: str | None, **given: Any) -> None:
    """Adapt BUNDLE to your own bags, which need no labels, and write it as BUNDLE2.

    What is harmless looks different at each site, so that a model alarms more or less often there than
    `--pfa` asks. This scans some of your bags (4,000 let the PFA of 5 % be well known, and some hundred
    roughly), trains the BiGAN anew on one half of them and sets the operating points on the other. The
    network stays: what it recognizes does not change. Minutes on two cores. A few per cent of threats among
    the bags do no harm: those that are clearly recognized are left out, and any other one only makes alarms
    rarer. If the command is killed, run it again to resume. Needs the train extra.

    \b
    gbad-batch adapt my-bundle --benign /archive/monday --benign /archive/friday --out site
    gbad-batch scan /archive --model site --pfa 0.02 --out results.parquet
    """
    need_extra("train", "torch", "timm", "sklearn", "onnx", "onnxscript", "matplotlib")
    from ..adaptation.run import AdaptSettings
    from ..adaptation.run import adapt as adapt_bundle
    from .console import training_shown

    out = given["out"]
    settings = AdaptSettings(bundle, benign, run=run or _run_folder(out), name=name or out.name, **given)
    with training_shown() as progress:
        adapt_bundle(settings, progress)
    click.echo(f"{out}: scan with --model {out}; its README.md says what it was adapted to")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--precision",
    type=click.Choice(["int8", "bf16"]),
    default="int8",
    show_default=True,
    help="int8 adds an INT8 form of the network. bf16 adds operating points for bfloat16, which needs this "
    "CPU to have it, and --calibration.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images with and without threats, preferably training images; int8 needs them.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Benign images, preferably calibration images: they set the precision's own operating points and "
    "measure how often it agrees with FP32. Without them INT8 uses FP32's operating points.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE2", help="Folder to create."
)
@click.option(
    "--count",
    "image_count",
    type=click.IntRange(1),
    default=QuantizeSettings.image_count,
    show_default=True,
    help="Number of images below DIR to use.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=QuantizeSettings.seed,
    show_default=True,
    help="Seed for choosing these images.",
)
def quantize(
    bundle: Path,
    precision: str,
    images: Path | None,
    calibration: Path | None,
    out: Path,
    **sampling: int,
) -> None:
    """Add a faster form of the network to BUNDLE, for scans on the CPU, and write it as BUNDLE2.

    `train` does this by itself: INT8, or else bfloat16. The images give the ranges of the network's
    activations in INT8; on each machine a parity gate decides whether scans use a form. If it disagrees with
    FP32 too often, nothing is written. Needs the train extra.

    \b
    gbad-batch quantize my-bundle --images bags/images --out my-bundle-int8
    gbad-batch quantize sixray --images SIXray/train --calibration SIXray/benign --out sixray-int8
    gbad-batch quantize sixray --precision bf16 --calibration SIXray/benign --out sixray-bf16
    gbad-batch scan /archive --model sixray-int8 --precision int8 --out results.parquet
    """
    needed, option = (images, "--images") if precision == "int8" else (calibration, "--calibration")
    if needed is None:
        raise Refused(f"--precision {precision} needs {option} DIR, a folder of images")
    need_extra("train", "nncf", "sklearn", "scipy")
    from ..bundle import Bundle, check_vacant
    from ..datasets import find_images
    from ..training.packing.bfloat16 import with_bf16
    from ..training.packing.quantizing import with_int8
    from ..training.packing.reduced import report
    from .console import training_shown

    check_vacant(out)
    former, settings = Bundle.read(bundle), QuantizeSettings(sampling["image_count"], sampling["seed"])
    benign = find_images(calibration) if calibration else []
    with training_shown() as progress:
        if precision == "int8":
            made = with_int8(former, find_images(needed), benign, settings, progress)
        else:
            made = with_bf16(former, benign, progress)
    made.write(out)
    click.echo(f"{out}: {report(made, precision)}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Bags with and without threats that the network was not trained on, such as validation images; may "
    "be repeated. Of ten at least one should hold a threat.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE2", help="Folder to create."
)
def typicality(bundle: Path, images: tuple[Path, ...], out: Path) -> None:
    """Add to BUNDLE what its scans need to tell images that look like nothing it has seen.

    `train` and `adapt` do this by themselves. Rows then have a `typicality`: a limit over the distance of an
    image's features from those of the images here. One in 200 of these exceeds the limit, where typicality
    is 1; 0.5 is twice as far. Some thousand images are best; a hundred are the least. Scores stay as they
    are. Needs the train extra.

    \b
    gbad-batch typicality my-bundle --images bags/validation --out my-bundle2
    gbad-batch scan /archive --model my-bundle2 --out results.parquet
    """
    need_extra("train", "nncf", "sklearn", "scipy")
    from ..bundle import Bundle
    from ..datasets import find_images
    from ..datasets.arrays import rows_below
    from ..training.packing.familiarity import add_typicality
    from .console import training_shown

    paths = [path for folder in images for path in (*find_images(folder), *rows_below(folder))]
    with training_shown() as progress:
        made = add_typicality(Bundle.read(bundle), paths, out, progress)
    told = made.manifest.provenance["typicality"]
    click.echo(
        f"{out}: knows the typicality of images by {told['images']} others; its hash is {made.hash[:12]}"
    )


@click.command()
@click.argument("results", type=click.Path(path_type=Path), metavar="RESULTS")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    required=True,
    metavar="LABELS",
    help="Labels of the images: a file, or a folder of annotations.",
)
@WHAT_LABELS
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Model of the scan: adds its other decisions and all its operating points.",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    metavar="RESULTS2",
    help="Results of the same model on other images: sets the class thresholds with the best F1 on them. A "
    "class that they lack keeps the threshold of the scan.",
)
@click.option(
    "--validation-labels",
    type=click.Path(path_type=Path),
    metavar="LABELS2",
    help="Labels of RESULTS2.  [default: the validation images of LABELS]",
)
@click.option(
    "--ignore",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="List of images with doubtful labels, one name per line: adds figures without them.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write metrics.json, table.md and pictures here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def evaluate(as_json: bool, **given: Any) -> None:
    """Judge the RESULTS of a scan by the LABELS of its images.

    Classes: average precision (AP) of the ungated probabilities over all images, and its mean (mAP), at the
    prevalence of these images and at 9, 99 and 999 negatives per positive. Anomaly score: AUROC, and
    detection (PD) at fixed false-alarm rates (PFA), both at calibrated thresholds (with --model; the PFA is
    measured here) and at thresholds set on these very images, which give an upper bound. Gates: the AP when
    alarms are ranked first. Intervals come from a bootstrap over bags (column `group` of a table of labels).

    An image that could not be scored counts as no alarm and ranks last, so a threat in it is missed. If
    LABELS has splits, only its test images are judged. Needs the train extra.

    \b
    gbad-batch synth bags --count 2000 --positive 0.2 --seed 9 --objects test
    gbad-batch scan bags/images --model my-bundle --out results.parquet
    gbad-batch evaluate results.parquet --labels bags/labels.csv --model my-bundle --out figures
    gbad-batch evaluate results.parquet --labels test.csv --ignore doubtful.txt --json
    """
    need_extra("train", "sklearn", "matplotlib")
    from ..evaluation import EvaluateSettings
    from ..evaluation import evaluate as judge
    from ..evaluation.report import as_markdown

    evaluation = judge(EvaluateSettings(**given))
    click.echo(json.dumps(evaluation.to_json(), indent=2) if as_json else as_markdown(evaluation))
