"""The model card, which is the README.md of a bundle."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...row import THREATS

DEMO = "**Trained on synthetic images, not for operational decisions.**\n\n"
TEXT = """# {name}

GBAD: a classifier of five threats, a BiGAN on its features of benign bags, and a decision on both.

{demo}## Images

Trained on {data}. The splits are disjoint by image and by near-duplicate group; each phase saw the train
split only, validation stopped phase I and chose the decision, calibration set the operating points.

{counts}
{projected}{mixed}
## Figures

{figures}

## Operating points

Set on {benign} benign images of the calibration split, decision '{default}'.

{points}

## Phases

Phase I: {epochs} at {sizes} pixels, batch {batch}, AdamW{localization}, from {begun}; weights are those of
the best epoch on validation. {head}
Phase II: {steps} steps; over the last, D told {d_real:.2f} of (s, E(s)) and {d_fake:.2f} of (G(z), z) right,
the standard deviation of G(z) was {std_g:.2f} times that of s, of E(s) {std_e:.2f}. Phase III: the SVM of
`gbad` is {kernel}; its AUROC is {seen:.3f} on training images and {unseen:.3f} on validation.

## Time

On {cpu}, in minutes: {minutes}.

## Limits

It detects what it was trained on: nothing is claimed for other threats, other scanners' looks or
another share of positives than those above. A false-alarm rate holds for bags like those of calibration.
{warnings}"""


def card(
    name: str,
    data: str,
    demo: bool,
    provenance: Mapping[str, Any],
    points: Mapping[str, Sequence[Mapping[str, Any]]],
    default: str,
) -> str:
    """Write the card in Markdown: what the model was trained on, its figures on other images, its limits."""
    settings = provenance["settings"]["phase1"]
    judged = provenance["validation"]["gbad"]
    return TEXT.format(
        name=name,
        demo=DEMO if demo else "",
        data=data,
        counts=_counts(provenance["images"]),
        projected=_projected(provenance["projected"]["images"]),
        mixed=_mixed(provenance["mixed"]),
        figures=_figures(provenance["test"], provenance["images"]),
        benign=provenance["images"]["calibration"]["benign"],
        default=default,
        points=points_table(points[default]),
        epochs=f"{len(provenance['epochs'])} epochs",
        sizes=", ".join(_stage_images(*stage) for stage in settings["stages"]),
        batch=settings["batch_size"],
        localization=", with a loss of where threats lie" if settings["localization"] else "",
        begun=_start(provenance["begun"]),
        head=_head(provenance["poolings"]),
        steps=provenance["settings"]["phase2"]["steps"],
        **{key: provenance["bigan"][key] for key in ("d_real", "d_fake", "std_g", "std_e")},
        kernel=judged["kernel"],
        seen=provenance["training"]["gbad"]["auroc"],
        unseen=judged["auroc"],
        cpu=provenance["cpu"],
        minutes=", ".join(f"{step} {took / 60:.1f}" for step, took in provenance["seconds"].items()),
        warnings="".join(f"\n- {warning}\n" for warning in provenance["warnings"]),
    )


SPLITS = ("train", "validation", "calibration", "test")
TYPICALITY = "\n## Typicality\n"
FORMS = {"int8": "\n## INT8\n", "bf16": "\n## BF16\n"}  # the last sections of a card


def with_typicality(card: str, told: Mapping[str, Any]) -> str:
    """Add a section on the bundle's typicality to a card, in place of an earlier one, before the forms."""
    plain = without_forms(card)
    forms = card.removeprefix(plain)
    text = (
        f"\nFitted on {told['images']} images that phase I was not trained on, along {told['directions']} "
        f"directions of x.\nOf images like these {told['beyond']:.1%} lie beyond the limit, where "
        "`typicality` is below 1.\n"
    )
    return plain.partition(TYPICALITY)[0] + TYPICALITY + text + forms


def with_section(
    card: str, precision: str, provenance: Mapping[str, Any], points: Sequence[Mapping[str, Any]] | None
) -> str:
    """Add a section on a form of the network in lower precision to a card, in place of an earlier one."""
    heading = FORMS[precision]
    before, _, behind = card.partition(heading)
    _, found, others = behind.partition("\n## ")
    return before + found + others + heading + _form(precision, provenance, points)


def without_forms(card: str) -> str:
    """Return a card without its sections on forms in lower precision."""
    return card[: min(at if (at := card.find(heading)) >= 0 else len(card) for heading in FORMS.values())]


def _form(precision: str, provenance: Mapping[str, Any], points: Sequence[Mapping[str, Any]] | None) -> str:
    if precision == "int8":
        lines = [f"\nThe network's INT8 form was quantized on {provenance.get('images', 'some')} images."]
    else:
        lines = ["\nCPUs with instructions for bfloat16 can compute the network in it."]
    if points is None:
        lines.append("It uses the operating points of FP32.\n")
        return " ".join(lines)
    lines.append(f"On {provenance['calibration']} benign images it decides as FP32 does on this share, each")
    lines.append(
        f"by its own operating points:\n\n{_agreements(provenance['agreement'])}\n\n{points_table(points)}\n"
    )
    return " ".join(lines)


def _agreements(agreement: Mapping[str, float]) -> str:
    rows = [
        [f"`{name.partition(' ')[0]}`", name.partition("at ")[2], f"{share:.2%}"]
        for name, share in agreement.items()
    ]
    return _table(["decision", "at", "as FP32"], rows)


def _counts(images: Mapping[str, Mapping[str, int]]) -> str:
    """Count images and labels of each split."""
    columns = ("images", "benign", *THREATS)
    rows = [[split, *(str(images[split][name]) for name in columns)] for split in SPLITS if split in images]
    return _table(["split", *columns], rows)


def _head(poolings: Mapping[str, float]) -> str:
    """Describe what gives the class scores; `poolings` is empty without a class map."""
    if not poolings:
        return "Class scores are those of FC5."
    names = {"map_max": "the maximum", "map_lse": "the log-sum-exp"}
    best = max(poolings, key=lambda head: poolings[head])
    found = ", ".join(f"{names[head]} {value:.3f}" for head, value in poolings.items())
    return f"Class scores are {names[best]} over the places of a class map (mAP on validation: {found})."


def _start(begun: Mapping[str, Any]) -> str:
    """Describe what phase I started from."""
    if "bundle" in begun:
        return f"the network of the bundle {begun['name']} ({begun['bundle'][:12]})"
    return f"weights of the backbone from {begun['weights']}" if begun["weights"] else "random weights"


def _projected(images: int) -> str:
    """State how many training images were made by projection."""
    made = "of the train split are benign ones into which threats were projected"
    return f"\n{images} images {made}.\n" if images else ""


def _mixed(images: int) -> str:
    """State how many synthetic images had a part in phase I."""
    made = "were mixed into phase I, so that it forgets no class; nothing else has seen them"
    return f"\n{images} synthetic images {made}.\n" if images else ""


def _figures(test: Mapping[str, Any], images: Mapping[str, Mapping[str, int]]) -> str:
    if not test:
        return "None: the data set has no test split, so nothing is claimed about what this bundle detects."
    names = {"mean average precision of the classes": "map"}
    names |= {f"average precision, {threat}": f"ap.{threat}" for threat in THREATS}
    for decision in ("gbad", "classes", "combined"):
        names |= {
            f"AUROC, `{decision}`": f"{decision}.auroc",
            f"PD at the PFA 5 % point, `{decision}`": f"{decision}.pd_at_pfa_05",
            f"PFA measured there, `{decision}`": f"{decision}.pfa_measured_05",
        }
    names |= {
        "FC5 by itself: mean average precision": "fc5.map",
        "FC5 by itself: AUROC, `classes`": "fc5.classes.auroc",
        "FC5 by itself: PD at the PFA 5 % point, `classes`": "fc5.classes.pd_at_pfa_05",
    }
    rows = [[title, *_bounded(test[key])] for title, key in names.items() if key in test]
    table = _table(["figure", "value", "95 % interval"], rows)
    counted = images["test"]
    return f"On the test split, {counted['images']} images, {counted['benign']} of them benign.\n\n{table}"


def _bounded(figure: Sequence[float | None]) -> list[str]:
    value, low, high = figure
    interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return ["-" if value is None else f"{value:.3f}", interval]


def points_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Format operating points as a table."""
    rows = [
        [
            f"{100 * point['pfa']:g} %",
            f"{point['threshold']:.4f}",
            "{:.2f} to {:.2f} %".format(*(100 * bound for bound in point["interval"])),
            "yes" if point["supported"] else "not supported: too few benign images",
        ]
        for point in points
    ]
    return _table(["PFA", "threshold", "95 % interval", "supported"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _stage_images(size: int, _: int, window: float) -> str:
    """Describe the images of a stage."""
    return str(size) if window == 1 else f"{size} (windows of {window:g} of the sides, around boxes)"
