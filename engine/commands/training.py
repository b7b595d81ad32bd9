"""The commands of a model owner: look at data, train, evaluate."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .options import DEMO, need_extra, options

_WHAT_LABELS = options(
    click.option(
        "--form",
        type=click.Choice(["auto", "sixray", "table", "voc", "boxes", "coco", "folders"]),
        default="auto",
        show_default=True,
        help="Of the labels; auto goes by what they are.",
    ),
    click.option(
        "--class-map",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TOML: [classes], then lines such as Dagger = 'knife' or Baton = 'ignore'.",
    ),
)


@click.group(epilog=DEMO)
def data() -> None:
    """Look at labelled data sets before training, and convert their labels.

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
    help="Of the images below DATASET.  [default: DATASET/labels.csv, or what DATASET is]",
)
@_WHAT_LABELS
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
    "--plot", "picture", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the labels."
)
def data_check(as_json: bool, picture: Path | None, **given: Any) -> None:
    """Tell what a data set holds, what of it is missing, and what stands in it twice.

    Counts images, labels, combinations and the true rate of positives; names what a list names but the
    disk lacks; decodes every image as a scan would; and looks for duplicates and near-duplicates inside
    and between the lists and their splits, for a bag that is trained on tests nothing. Findings are no
    errors: the exit code is 0. Needs the train extra.

    DATASET is the folder of the images, or a label file beside them. Labels are SIXray's CSV, a CSV or
    Parquet table (path or name, gun, knife, wrench, pliers, scissors, perhaps split and group), Pascal VOC
    XML, OPIXray's text boxes, COCO JSON, or folders named by class. Classes of other names need a class
    map:

    \b
    [classes]
    Dagger = "knife"
    Baton = "ignore"       none of the five; an image with no other label counts as benign

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
@_WHAT_LABELS
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the paths of the images below DIR, and in JSON their sizes.",
)
def data_convert(source: Path, out: Path, **given: Any) -> None:
    """Write the labels of IN, in any form that can be read, to OUT: .csv is SIXray's form, .json COCO's.

    A label without a box becomes an annotation without `bbox`. SIXray's form has no place for boxes,
    splits and groups; what is dropped is said.

    \b
    gbad-batch data convert train.csv train.json
    gbad-batch data convert train.json again.csv               the same lines
    gbad-batch data convert OPIXray/train/annotation cutters.json --images OPIXray/train/image
    gbad-batch data convert PIDray/train.json pidray.csv --class-map pidray.toml
    """
    from ..datasets.convert import convert

    done = convert(source, out, **given)
    boxes = f", {done.boxes} boxes" if done.boxes else ""
    dropped = f"; a CSV has no place for {' and '.join(done.dropped)}" if done.dropped else ""
    click.echo(f"{out}: {done.images} images, {done.positives} with a threat{boxes}{dropped}")


_HOW_TO_TRAIN = options(
    click.option(
        "--backbone", default="resnext50_32x4d", show_default=True, help="A name that timm registers."
    ),
    click.option("--image-size", type=int, default=256, show_default=True, help="Pixels a side in scans."),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE|hub",
        help="ImageNet weights of the backbone, as torchvision or timm store them; hub fetches timm's.",
    ),
    click.option(
        "--start",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Begin with the backbone and the pyramid of a bundle of the same architecture.",
    ),
    click.option(
        "--stages",
        default="128:10,256:5",
        show_default=True,
        metavar="SIZE:EPOCHS[:WINDOW],...",
        help="Image sizes of phase I, growing, and epochs at each. A window of less than 1 shows only that "
        "share of each side, around a threat where the labels have boxes.",
    ),
    click.option("--batch-size", type=click.IntRange(2), default=32, show_default=True, help="Of phase I."),
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "sgd"]),
        default="adamw",
        show_default=True,
        help="Of phase I.",
    ),
    click.option(
        "--learning-rate", type=float, default=2e-3, show_default=True, help="Phase I's, at its peak."
    ),
    click.option(
        "--places",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        metavar="WEIGHT",
        help="Learn in phase I where threats lie, too, where the labels have boxes or --project adds "
        "threats: the weight of that loss (the default bundle had 1). Bundles hold nothing of it.",
    ),
    click.option("--pos-weight", is_flag=True, help="Weight each class by its scarcity in phase I."),
    click.option("--mixed", is_flag=True, help="Phase I in bfloat16 where that is safe."),
    click.option(
        "--project",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        metavar="N",
        help="Threat image projection: add copies of N benign training images with threats multiplied into "
        "them, to the train split alone.",
    ),
    click.option(
        "--project-from",
        type=click.Path(path_type=Path),
        metavar="DIR|synth",
        help="Their threats: grey (single-energy) pictures of single things before an even ground, in "
        "folders named by class, or rendered ones.  [default: those in the boxes of training images]",
    ),
    click.option(
        "--bigan-steps", type=click.IntRange(1), default=4000, show_default=True, help="Of phase II."
    ),
    click.option(
        "--phase3",
        type=click.Choice(["insample", "heldout"]),
        default="insample",
        show_default=True,
        help="The SVM sees the training images' losses, as reported, or those of images held out.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where to train."
    ),
    click.option("--threads", type=int, default=0, metavar="N", help="Default: all cores that may be used."),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random."
    ),
)


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path), metavar="DATASET")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE", help="A new folder."
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of the images below DATASET.  [default: DATASET/labels.csv, or what DATASET is]",
)
@_WHAT_LABELS
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep checkpoints, features and figures here.  [default: BUNDLE.run]",
)
@click.option("--name", metavar="NAME", help="Of the bundle.  [default: that of its folder]")
@click.option(
    "--phase",
    "phases",
    type=click.IntRange(1, 3),
    multiple=True,
    metavar="N",
    help="Only this phase, again where its settings differ; the run folder must hold those before.",
)
@_HOW_TO_TRAIN
@click.option(
    "--report-exact",
    is_flag=True,
    help="Phase I as the report has it: 15 epochs at 256 pixels, no FPN; figures, and no bundle.",
)
def train(dataset: Path, run: Path | None, report_exact: bool, **given: Any) -> None:
    """Train a bundle on the images below DATASET, in the method's three phases.

    The classifier learns the five threats, the BiGAN the features of benign bags, and a support vector
    machine decides on its losses. Images are dealt into four splits, of which training sees one, unless the
    labels are a table with a column `split`. Killed at any moment, the same command goes on where it was.
    Needs the train extra. Images that `gbad-batch synth` wrote give a bundle that is marked as a demo.

    The run folder holds checkpoints, features, metrics.jsonl, plots and TensorBoard's events.

    \b
    gbad-batch synth bags --count 8000 --positive 0.5
    gbad-batch train bags --backbone regnetx_004 --out my-bundle
    gbad-batch train SIXray/images --labels train.csv --weights resnext50.safetensors --out sixray
    gbad-batch train PIDray --labels PIDray/train.json --project 2000 --out projected
    gbad-batch train bags --out my-bundle --phase 3 --phase3 heldout       the last phase again
    gbad-batch scan /archive --model my-bundle --out results.parquet
    """
    need_extra("train", "torch", "timm", "sklearn", "onnx", "onnxscript", "nvidia.dali", "matplotlib")
    from ..system.machine import keep_freed_memory
    from ..training.pipeline import train as train_bundle
    from ..training.pipeline import train_as_reported
    from ..training.settings import train_settings
    from .console import training_shown

    out = given["out"]
    settings = train_settings(dataset, run=run or out.with_name(f"{out.name}.run"), **given)
    keep_freed_memory()  # here, for a library's caller may want another malloc
    with training_shown() as progress:
        if report_exact:
            lines = train_as_reported(settings, progress)
            click.echo(f"{settings.run}: figures of {len(lines)} epochs in metrics.jsonl, pictures in plots/")
            return
        bundle = train_bundle(settings, progress)
    if bundle is None:
        click.echo(f"{settings.run}: finished; go on with the next phase")
    else:
        click.echo(f"{bundle}: scan with --model {bundle}; its README.md says what it was trained on")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Images like those of training, with and without threats; best those of training.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Benign images, best those of calibration: INT8 gets operating points of its own on them, and how "
    "often it decides as FP32 is told. Without them it uses FP32's.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE2", help="A new folder."
)
@click.option(
    "--count", type=click.IntRange(1), default=300, show_default=True, help="Of the images below DIR."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of which of them are taken."
)
def quantize(bundle: Path, images: Path, calibration: Path | None, out: Path, count: int, seed: int) -> None:
    """Write BUNDLE2: all of BUNDLE, and an INT8 form of its network, which scans on the CPU take.

    `train` does this by itself. The ranges of the network's maps are found on images; the network's parity
    gate decides on each machine whether a scan uses INT8. Where INT8 decides otherwise than FP32 too often,
    nothing is written. Needs the train extra.

    \b
    gbad-batch quantize my-bundle --images bags/images --out my-bundle-int8
    gbad-batch quantize sixray --images SIXray/train --calibration SIXray/benign --out sixray-int8
    gbad-batch scan /archive --model sixray-int8 --precision int8 --out results.parquet
    """
    need_extra("train", "nncf", "sklearn", "scipy")
    from ..bundle import Bundle
    from ..datasets import find_images
    from ..training.packing.quantizing import QuantizeSettings, quantize_bundle, report
    from .console import training_shown

    settings = QuantizeSettings(images=count, seed=seed)
    benign = find_images(calibration) if calibration else []
    with training_shown() as progress:
        made = quantize_bundle(Bundle.read(bundle), find_images(images), benign, out, settings, progress)
    click.echo(f"{out}: {report(made)}")


@click.command()
@click.argument("results", type=click.Path(path_type=Path), metavar="RESULTS")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    required=True,
    metavar="LABELS",
    help="What the images hold: a list, or a folder of annotations.",
)
@_WHAT_LABELS
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="The model of the scan: judges all its decisions, at all its operating points.",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    metavar="RESULTS2",
    help="A scan of other images by the same model, which sets the class thresholds: those with the best F1 "
    "on it; a class that it lacks keeps the scan's own.",
)
@click.option(
    "--validation-labels",
    type=click.Path(path_type=Path),
    metavar="LABELS2",
    help="Of RESULTS2.  [default: the validation images of LABELS]",
)
@click.option(
    "--ignore",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="Names whose labels are in doubt, one a line: figures with and without them.",
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

    Every class is ranked over all images by its ungated probability (AP, their mean is the mAP), beside its
    share of the images and as if there were 9, 99 and 999 negatives to a positive. The anomaly score has its
    AUROC, and detection (PD) at false-alarm rates (PFA): by the thresholds that calibration set, which
    --model brings, with the PFA that they have here, and by thresholds set on these very images, which only
    say what could be had. Gates show what AP is left when alarms are ranked first. Intervals are drawn by
    bag, the column `group` of a table of labels.

    An image that could not be scored is no alarm and ranks last, so a threat in it is missed. Where LABELS
    names splits, its test images are judged. Needs the train extra.

    \b
    gbad-batch synth bags --count 2000 --positive 0.2 --seed 9 --objects test
    gbad-batch scan bags/images --model my-bundle --out results.parquet
    gbad-batch evaluate results.parquet --labels bags/labels.csv --model my-bundle --out figures
    gbad-batch evaluate results.parquet --labels test.csv --ignore doubtful.txt --json
    """
    need_extra("train", "sklearn", "matplotlib")
    from ..evaluation import EvaluateSettings
    from ..evaluation import evaluate as judge
    from ..evaluation.table import text

    evaluation = judge(EvaluateSettings(**given))
    click.echo(json.dumps(evaluation.to_json(), indent=2) if as_json else text(evaluation))
