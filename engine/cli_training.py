"""The commands of a model owner: look at data, train, evaluate."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .cli_options import DEMO, need_extra, options

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
    Baton = "ignore"       none of the five: the image keeps its other labels

    \b
    gbad-batch data check bags/
    gbad-batch data check SIXray/images --labels train.csv --test test.csv --plot labels.png
    gbad-batch data check PIDray/train.json --class-map pidray.toml
    """
    need_extra("train", "imagehash", "matplotlib", "scipy")
    from .console import training_shown
    from .training.datasets.check import CheckSettings, check
    from .training.datasets.report import check_text, plot

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
    from .training.datasets.convert import convert

    done = convert(source, out, **given)
    boxes = f", {done.boxes} boxes" if done.boxes else ""
    dropped = f"; a CSV has no place for {' and '.join(done.dropped)}" if done.dropped else ""
    click.echo(f"{out}: {done.images} images, {done.positives} with a threat{boxes}{dropped}")


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path), metavar="DATASET")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="BUNDLE", help="A new folder."
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A list in SIXray's form.  [default: DATASET/labels.csv]",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep decoded pixels and figures here.  [default: BUNDLE.run]",
)
@click.option("--backbone", default="resnext50_32x4d", show_default=True, help="A name that timm registers.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="ImageNet weights of the backbone, as torchvision or timm store them.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random.")
def train(dataset: Path, out: Path, labels: Path | None, run: Path | None, **given: Any) -> None:
    """Train a bundle on the images below DATASET, in the method's three phases.

    The classifier learns the five threats, the BiGAN the features of benign bags, and a support vector
    machine decides on its losses. Needs the train extra. Images that `gbad-batch synth` wrote give a bundle
    that is marked as a demo.

    \b
    gbad-batch synth bags --count 8000 --positive 0.5
    gbad-batch train bags --backbone regnetx_004 --out my-bundle
    gbad-batch scan /archive --model my-bundle --out results.parquet
    """
    need_extra("train", "torch", "timm", "sklearn", "onnx", "onnxscript")
    from .console import training_shown
    from .model.architecture import Architecture
    from .training.pipeline import TrainSettings
    from .training.pipeline import train as train_bundle

    settings = TrainSettings(
        labels=labels or dataset / "labels.csv",
        images=dataset,
        out=out,
        run=run or out.with_name(f"{out.name}.run"),
        name=out.name,
        seed=given["seed"],
        demo=(dataset / "synth.json").exists(),
        backbone_weights=given["weights"],
        architecture=Architecture(backbone=given["backbone"]),
    )
    with training_shown() as progress:
        bundle = train_bundle(settings, progress)
    click.echo(f"{bundle}: scan with --model {bundle}; its README.md says what it was trained on")


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
    help="A scan of other images by the same model: class thresholds are those with its best F1.",
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
    from .evaluation import EvaluateSettings
    from .evaluation import evaluate as judge
    from .evaluation.table import text

    evaluation = judge(EvaluateSettings(**given))
    click.echo(json.dumps(evaluation.to_json(), indent=2) if as_json else text(evaluation))
