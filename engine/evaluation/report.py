"""The outcome of an evaluation: as one value, as JSON, and as Markdown tables, readable as plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..row import THREATS
from ..text import counted, escaped
from .bootstrap import Figure, Figures
from .figures import GATE_PFAS, ODDS, PFAS, percent

NOTHING = "-"
DECISIONS = ("gbad", "classes", "combined")
COMPARED = {
    "mAP": "map",
    "mAP, gated by the alarm": "map_gated",
    "AUROC": "auroc",
    "anomaly AP": "anomaly_ap",
    "PD of the alarm": "pd",
    "PFA of the alarm": "pfa",
    "micro F1": "micro_f1",
    "macro F1": "macro_f1",
}

Cells = list[list[str]]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation; `figures` holds every figure by name."""

    about: Mapping[str, Any]  # the results, the labels, the model and its operating point
    counts: Mapping[str, Any]  # of rows, images and failures
    confusion: Mapping[str, int]  # of alarm against truth
    figures: Figures
    without_ignored: Figures | None  # the same without the images of `ignore`
    notes: tuple[str, ...]  # what a reader must know about the figures

    def to_json(self) -> dict[str, Any]:
        """Return plain values: figures by name, and their intervals under `intervals`."""
        document = {**_values(self.figures), "about": self.about, "counts": self.counts}
        document |= {"confusion": self.confusion, "notes": self.notes}
        if self.without_ignored:
            document["without_ignored"] = _values(self.without_ignored)
        return document


def as_markdown(evaluation: Evaluation) -> str:
    """Format all tables with headings, then the notes; figures in %, intervals in brackets."""
    figures = evaluation.figures
    parts = [
        "# Evaluation",
        _introduction(evaluation),
        "## Classes: average precision of the ungated ranking of all images",
        _table(_ranking(evaluation)),
        "## Classes at their thresholds",
        _table(_agreement(evaluation)),
        "## Threat or benign: the anomaly score",
        _table(_decisions(figures)),
        "## Detection (PD) at a false-alarm rate (PFA)",
        _table(_detection(figures)),
        "## The alarm of these results",
        _table(_confusion(evaluation)),
        "## The ranking behind a gate: alarms first, each part by its probability",
        _table(_gates(figures)),
    ]
    if evaluation.without_ignored:
        parts += ["## With and without the names to ignore", _table(_compared(evaluation))]
    return "\n\n".join([*parts, "\n".join(f"- {escaped(note)}" for note in evaluation.notes)])


def _introduction(evaluation: Evaluation) -> str:
    about, counts = evaluation.about, evaluation.counts
    return (
        f"{counted(counts['images'], 'image')} ({counts['positive']} with a threat, {counts['benign']} "
        f"benign) of {escaped(about['results'])} by the labels of {escaped(about['labels'])}; model "
        f"{escaped(about['bundle'])} ({about['bundle_hash'][:12]}), {about['backend']} {about['precision']}, "
        f"decision {about['decision']}, alarm from {about['threshold']:.4g} on (PFA {about['pfa']:.3g}). "
        "Figures in %, with 95 % intervals."
    )


def _ranking(evaluation: Evaluation) -> Cells:
    figures = evaluation.figures
    suffixes = ["", *(f"_1_{odds}" for odds in ODDS)]
    head = ["class", "images", "share", "AP", *(f"AP at 1:{odds}" for odds in ODDS)]
    rows = [
        [name, str(evaluation.counts[name]), _plain(figures[f"prevalence.{name}"])]
        + [_bounded(figures[f"ap{suffix}.{name}"]) for suffix in suffixes]
        for name in THREATS
    ]
    mean = ["any; mean", str(evaluation.counts["positive"]), _plain(figures["prevalence"])]
    return [head, *rows, mean + [_bounded(figures[f"map{suffix}"]) for suffix in suffixes]]


def _agreement(evaluation: Evaluation) -> Cells:
    figures, thresholds = evaluation.figures, evaluation.about["class_thresholds"]
    rows = [["class", "threshold", "precision", "recall", "F1", "F1 in alarms only"]]
    keys = ("precision", "recall", "f1", "f1_gated")
    for name, threshold in zip(THREATS, thresholds, strict=True):
        rows.append([name, f"{threshold:.3f}", *(_bounded(figures[f"{key}.{name}"]) for key in keys)])
    averages = ("micro", "macro")
    return rows + [[each, "", *(_bounded(figures[f"{each}_{key}"]) for key in keys)] for each in averages]


def _decisions(figures: Figures) -> Cells:
    keys = ["auroc", "anomaly_ap", *(f"anomaly_ap_1_{odds}" for odds in ODDS)]
    head = ["decision", "AUROC", "AP", *(f"AP at 1:{odds}" for odds in ODDS)]
    return [
        head,
        *([name, *(_bounded(figures[f"{name}.{key}"]) for key in keys)] for name in _judged(figures)),
    ]


def _detection(figures: Figures) -> Cells:
    head = ["decision", "PFA set", "PD", "PFA measured", "PD, threshold set on these images"]
    rows = []
    for name in _judged(figures):
        for at in _stated(figures, name):
            keys = [f"pd_at_pfa_{at}", f"pfa_measured_{at}", f"pd_at_test_pfa_{at}"]
            row = [figures.get(f"{name}.{key}", Figure(None, None, None)) for key in keys]
            rows.append([name, at.replace("_", ".").lstrip("0") or "0", *map(_bounded, row)])
    return [head, *rows]


def _judged(figures: Figures) -> list[str]:
    return [name for name in DECISIONS if f"{name}.auroc" in figures]


def _stated(figures: Figures, decision: str) -> list[str]:
    """Return the false-alarm rates at which a decision has figures, ascending."""
    own = {name.rpartition("_pfa_")[2] for name in figures if name.startswith(f"{decision}.pd_at_pfa_")}
    return sorted(own | {percent(pfa) for pfa in PFAS}, key=lambda at: float(at.replace("_", ".")))


def _confusion(evaluation: Evaluation) -> Cells:
    figures, counts = evaluation.figures, evaluation.confusion
    rows = [["truth", "alarm", "no alarm", "share of alarms"]]
    rows.append(["threat", str(counts["detected"]), str(counts["missed"]), _bounded(figures["pd"])])
    for name in THREATS:
        share, images = figures[f"pd.{name}"], evaluation.counts[name]
        alarms = round((share.value or 0) * images)
        rows.append([f"- {name}", str(alarms), str(images - alarms), _bounded(share)])
    return [*rows, ["benign", str(counts["false_alarms"]), str(counts["quiet"]), _bounded(figures["pfa"])]]


def _gates(figures: Figures) -> Cells:
    gates = {"none": "", "the alarm": "_gated"}
    gates |= {f"PFA {100 * pfa:g}": f"_gated_pfa_{percent(pfa)}" for pfa in GATE_PFAS}
    rows = [
        [
            gate,
            _bounded(figures[f"map{suffix}"]),
            *(_plain(figures[f"ap{suffix}.{name}"]) for name in THREATS),
        ]
        for gate, suffix in gates.items()
        if f"map{suffix}" in figures
    ]
    return [["gate", "mAP", *THREATS], *rows]


def _compared(evaluation: Evaluation) -> Cells:
    assert evaluation.without_ignored is not None
    head = ["figure", "with them", f"without {counted(evaluation.counts['ignored'], 'image')}"]
    both = evaluation.figures, evaluation.without_ignored
    return [
        head,
        *([title, *(_bounded(figures[key]) for figures in both)] for title, key in COMPARED.items()),
    ]


def _plain(figure: Figure) -> str:
    return NOTHING if figure.value is None else f"{100 * figure.value:.1f}"


def _bounded(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return _plain(figure)
    return f"{_plain(figure)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def _table(cells: Cells) -> str:
    """Format a Markdown table: the first column left-aligned, numbers right-aligned."""
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    head, *rows = (_line(row, widths) for row in cells)
    rule = (
        "| "
        + " | ".join("-" * widths[0] if k == 0 else "-" * (w - 1) + ":" for k, w in enumerate(widths))
        + " |"
    )
    return "\n".join([head, rule, *rows])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return (
        "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"
    )


def _values(figures: Figures) -> dict[str, Any]:
    intervals = {
        name: [figure.low, figure.high] for name, figure in figures.items() if figure.low is not None
    }
    return {**{name: figure.value for name, figure in figures.items()}, "intervals": intervals}
