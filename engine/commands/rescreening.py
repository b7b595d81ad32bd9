"""The commands that ask finished results again: decide, rescore, diff, calibrate, bags."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Refused
from ..text import counted, duration, escaped
from .options import DEMO, VIEWS, WHAT_LABELS, options, setting_option

if TYPE_CHECKING:
    from ..rescreening import Decided, Difference
    from ..rescreening.bagging import Bagged
    from ..rescreening.calibrating import Calibrated
    from ..rescreening.comparing import Flip, Flips, Side
    from ..rescreening.judged import Alarms
    from ..rescreening.paired import Paired

PATH = click.Path(path_type=Path)

NEW_RESULTS = setting_option(
    "out", required=True, metavar="FILE|DIR/", help="New results: a file, or a folder if RESULTS is."
)
NEW_POINT = options(  # at which results are decided again, and how they are written and told
    setting_option(
        "pfa",
        type=float,
        metavar="P",
        help="Share of benign bags that may raise an alarm; default: that of RESULTS.",
    ),
    setting_option("threshold", type=float, metavar="T"),
    setting_option("point", type=PATH, metavar="FILE"),
    setting_option(
        "overwrite", help="Replace what stands at --out, which may be RESULTS, if that is a file."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object."),
)


@click.command(epilog=DEMO)
@click.argument("results", type=PATH, metavar="RESULTS")
@NEW_RESULTS
@setting_option(
    "model", type=PATH, metavar="BUNDLE", help="Model that RESULTS come from; default: the demo model."
)
@setting_option("decision", metavar="NAME", help="Decision to use; default: that of RESULTS.")
@NEW_POINT
def decide(as_json: bool, **given: Any) -> None:
    """Decide again, without scanning: another false-alarm rate, threshold or decision.

    Reads the losses and class scores in RESULTS and writes --out as a scan with these options would have
    written it. The footer names both runs. Images without a score keep their rows.

    \b
    gbad-batch decide results.parquet --pfa 0.01 --out fewer.parquet
    gbad-batch decide results.parquet --decision gbad --out gbad.parquet
    """
    from ..rescreening import DecideSettings
    from ..rescreening import decide as decide_again

    decided = decide_again(DecideSettings(**given))
    click.echo(json.dumps(decided.to_json(), indent=2) if as_json else _decided_text(decided))


def _decided_text(decided: "Decided") -> str:
    """Format the figures of `decide` for a person."""
    speed = f"{decided.rows / max(decided.seconds, 1e-9):,.0f} rows/s"
    lines = [f"{decided.rows} rows: {decided.scored} scored ({duration(decided.seconds)}, {speed})"]
    if decided.demo:
        lines.append("  Model trained on synthetic images, not for operational decisions.")
    classes = ", ".join(f"{name} {number}" for name, number in decided.alarms_by_class.items() if number)
    lines += [
        f"  {decided.alarms_before:>10} alarms before, {_point_text(decided.before)}",
        f"  {decided.alarms:>10} alarms now, {_point_text(decided.after)}"
        + (f": {classes}" if classes else ""),
        f"  {decided.raised:>10} raised, {decided.cleared} cleared",
    ]
    if decided.suppressed:
        lines.append(f"  {decided.suppressed:>10} over a class threshold, but no alarm")
    lines += [f"  {note}" for note in decided.notes]
    return "\n".join([*lines, "", f"Results: {escaped(decided.out)}"])


def _point_text(point: dict[str, Any]) -> str:
    given = "a threshold given" if point["point"] is None else "a point of your own"
    rate = given if point["pfa"] is None else f"PFA {point['pfa']:.3g}"
    return f"at {rate} (score >= {point['threshold']:.4g}, decision '{point['decision']}')"


@click.command(epilog=DEMO)
@click.argument("features", type=PATH, metavar="FEATURES")
@click.option(
    "--results", type=PATH, required=True, metavar="RESULTS", help="Results of the scan that stored FEATURES."
)
@setting_option(
    "model", type=PATH, required=True, metavar="BUNDLE", help="Model that scores, on the same network."
)
@NEW_RESULTS
@setting_option("decision", metavar="NAME", help="Decision to use; default: that of BUNDLE.")
@NEW_POINT
def rescore(as_json: bool, **given: Any) -> None:
    """Score a finished scan again with another BUNDLE, from its stored features, without decoding an image.

    `scan --features DIR` stores what the network sees of each image, some 2.1 kB an image (2.1 GB a million).
    A bundle of the same network, such as one that `adapt` made, or `train --phase 2 --phase 3` again, differs
    in BiGAN, decision and operating points alone: these are computed anew, thousands of images a second on
    each core. Scores agree with those of a scan with BUNDLE within its tolerance, as features are stored in
    half precision. Another network is refused: it takes a scan.

    \b
    gbad-batch scan /archive --out results.parquet --features features/
    gbad-batch rescore features/ --results results.parquet --model site --out new.parquet
    gbad-batch diff results.parquet new.parquet
    """
    from ..rescreening import RescoreSettings
    from ..rescreening import rescore as score_again

    rescored = score_again(RescoreSettings(**given))
    if as_json:
        click.echo(json.dumps(rescored.to_json(), indent=2))
        return
    click.echo(f"{escaped(rescored.model_before)} before, {escaped(rescored.model)} now")
    click.echo(_decided_text(rescored))


@click.command("diff", epilog=DEMO)
@click.argument("old", type=PATH, metavar="OLD")
@click.argument("new", type=PATH, metavar="NEW")
@click.option("--labels", type=PATH, metavar="LABELS", help="Labels of the images: a file or a folder.")
@WHAT_LABELS
@click.option(
    "--top",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Number of folders, and of flips in each direction, to list.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def diff(as_json: bool, **given: Any) -> None:
    """Show what NEW decides differently from OLD: two results of the same archive.

    Images are matched by uri and offset. A flip is an image that is an alarm in one result only; flips are
    counted by class and folder, and listed by how far the image moved across the threshold, in standard
    deviations of each result's scores. McNemar's exact test says whether more alarms are raised than cleared
    (with SciPy, extra: statistics); with LABELS also among the images with and without threats.

    \b
    gbad-batch diff last-model.parquet new-model.parquet
    gbad-batch diff last-model.parquet new-model.parquet --labels labels.csv --json
    """
    from ..rescreening import DiffSettings
    from ..rescreening import diff as compare

    found = compare(DiffSettings(**given))
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else _diff_text(found))


def _diff_text(found: "Difference") -> str:
    """Format the differences of two results for a person."""
    flips, *labelled = found.tests
    only = f"{found.only_old} only in OLD, {found.only_new} only in NEW"
    lines = [f"OLD  {_side_text(found.old)}", f"NEW  {_side_text(found.new)}", ""]
    lines.append(f"{found.both} images in both, {found.compared} scored in both; {only}")
    lines.append(f"  {found.alarms_old:>10} alarms in OLD, {found.alarms_new} in NEW")
    lines.append(f"  {flips.raised:>10} raised, {flips.cleared} cleared{_test_text(flips)}")
    if found.lost_score or found.got_score:
        lines.append(f"  {found.lost_score:>10} lost their score, {found.got_score} got one")
    for title, listed in (
        ("Only in OLD", [f"  {escaped(uri)}" for uri in found.only_old_examples]),
        ("Only in NEW", [f"  {escaped(uri)}" for uri in found.only_new_examples]),
        ("By class named", _counts(found.by_class)),
        ("By folder", _counts(found.by_folder)),
        ("Labelled images", list(map(_labelled_text, labelled))),
        ("Raised, largest change first", list(map(_flip_text, found.raised))),
        ("Cleared, largest change first", list(map(_flip_text, found.cleared))),
    ):
        lines += ["", f"{title}:", *listed] if listed else []
    return "\n".join([*lines, "", *found.notes] if found.notes else lines)


def _side_text(side: "Side") -> str:
    point = f"decision '{side.decision}', PFA {side.pfa:.3g}, score >= {side.threshold:.4g}"
    return (
        f"{escaped(side.path)}: {side.images} images, model {escaped(side.model)}, {side.precision}, {point}"
    )


def _test_text(test: "Paired") -> str:
    if test.p_value is None or test.interval is None:
        return ""
    low, high = test.interval
    return f" (McNemar p = {test.p_value:.2g}; {low:.0%} to {high:.0%} of the flips are raised)"


def _labelled_text(test: "Paired") -> str:
    counts = f"{test.images} compared, {test.raised} raised, {test.cleared} cleared"
    return f"  {test.group:<24} {counts}{_test_text(test)}"


def _counts(found: "list[Flips]") -> list[str]:
    return [
        f"  {each.raised:>10} raised {each.cleared:>10} cleared  {escaped(each.name)}"
        + (f" ({each.images} images)" if each.images is not None else "")
        for each in found
        if each.raised or each.cleared
    ]


def _flip_text(flip: "Flip") -> str:
    before, now = (", ".join(names) or "-" for names in (flip.old_threats, flip.new_threats))
    label = "" if flip.labels is None else f"  [{', '.join(flip.labels) or 'benign'}]"
    scores = f"{flip.old_score:>9.4f} -> {flip.new_score:>9.4f}"
    return f"  {flip.change:>+7.2f}  {scores}  {before} -> {now}  {escaped(flip.uri)}{label}"


@click.command(epilog=DEMO)
@click.argument("results", type=PATH, metavar="RESULTS")
@click.option(
    "--verdicts",
    type=PATH,
    required=True,
    metavar="FILE",
    help="Verdicts on images of RESULTS, as the page of `report` downloads them (CSV).",
)
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The operating point, as JSON.")
@setting_option(
    "pfa",
    type=float,
    metavar="P",
    help="Share of harmless bags that may raise an alarm; default: that of RESULTS.",
)
@setting_option(
    "model", type=PATH, metavar="BUNDLE", help="Model that RESULTS come from; default: the demo model."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def calibrate(as_json: bool, **given: Any) -> None:
    """Learn from verdicts on alarms: how many were true, and the threshold for a rate of false alarms here.

    Writes an operating point of your own, which scan and decide take with --point. It needs a verdict on
    every image at or above its threshold, or on each of a sample (`report --sample`), and says how many are
    missing. An image of which copies exist counts once. What cannot be told from verdicts on alarms is the
    share of threats that are missed. Needs SciPy (extra: statistics).

    \b
    gbad-batch calibrate results.parquet --verdicts verdicts.csv --out point.json
    gbad-batch calibrate results.parquet --verdicts verdicts.csv --pfa 0.01 --out point.json
    gbad-batch decide results.parquet --point point.json --out again.parquet
    """
    from ..rescreening.calibrating import CalibrateSettings
    from ..rescreening.calibrating import calibrate as calibrate_by

    found = calibrate_by(CalibrateSettings(**given))
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else _calibrated_text(found))


def _calibrated_text(found: "Calibrated") -> str:
    """Format the figures of `calibrate` for a person."""
    verdicts = ", ".join(f"{number} {name}" for name, number in found.given.items())
    lines = [f"{counted(sum(found.given.values()), 'verdict')}: {verdicts}; {found.images} distinct images"]
    if found.demo:
        lines.append("  Model trained on synthetic images, not for operational decisions.")
    lines += [
        f"  {found.now.images:>10} alarms in the results (score >= {found.now.threshold:.4g}): "
        + _alarms_text(found.now),
        f"  {found.new.images:>10} alarms at the new point (score >= {found.new.threshold:.4g}): "
        + _alarms_text(found.new),
    ]
    if found.top is not None:
        lines.append(f"  {found.top.images:>10} most anomalous images have a verdict without a gap")
    if not found.point["supported"]:
        lines.append("  Few false alarms were judged: the interval is wide, and more verdicts narrow it.")
    lines += [f"  {note}" for note in found.notes]
    return "\n".join([*lines, "", f"Operating point: {escaped(found.out)}"])


def _alarms_text(alarms: "Alarms") -> str:
    counts = {"true": alarms.true, "false": alarms.false, "unsure": alarms.unsure}
    counts["without verdict"] = alarms.unjudged
    words = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "none"
    if alarms.drawn is not None:
        words = f"of {alarms.drawn} drawn {words}"
    low, high = alarms.interval
    rate = "PFA" if alarms.pfa is None else f"PFA {alarms.pfa:.3g},"
    return f"{words}; {rate} {low:.3g} to {high:.3g} (95 %)"


@click.command()
@click.argument("results", type=PATH, metavar="RESULTS")
@VIEWS
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The bags, as a Parquet file.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def bags(results: Path, group_by: str | None, groups: Path | None, out: Path, as_json: bool) -> None:
    """Join the views of each bag in RESULTS: a row a bag.

    A bag alarms if any of its views does; its score is the largest. Its row lists all views with their
    statuses, so it says which failed. An image that is not named a bag is a bag of its own.

    \b
    gbad-batch bags results.parquet --group-by '(bag\\d+)_(?:top|side)' --out bags.parquet
    gbad-batch bags results.parquet --groups views.csv --out bags.parquet
    """
    from ..grouping import grouping_of
    from ..rescreening.bagging import join_views

    grouping = grouping_of(group_by, groups)
    if grouping is None:
        raise Refused("what makes a bag is missing: add --group-by REGEX or --groups FILE")
    found = join_views(results, grouping, out)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else _bagged_text(found))


def _bagged_text(found: "Bagged") -> str:
    """Format the figures of `bags` for a person."""
    views = f"of up to {counted(found.largest, 'view')}"
    lines = [f"{counted(found.bags, 'bag')} {views}, from {counted(found.images, 'image')}"]
    lines.append(f"  {found.alarms:>10} alarm")
    if found.incomplete:
        lines.append(
            f"  {found.incomplete:>10} with a failed view, {found.unscored} of them without any score"
        )
    if found.single:
        lines.append(f"  {found.single:>10} images not named as views, each a bag of its own")
    return "\n".join([*lines, "", f"Bags: {escaped(found.out)}"])
