"""Plots of an evaluation: curves, scores, the plane of the two losses, and reliability of probabilities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ..bundle import Bundle, operating_point
from ..model.decision import SMALLEST_LOSS, Decision
from ..row import THREATS
from ..text import counted
from .figures import Predictions, ranked
from .measures import Flags, Floats

BENIGN, THREAT, LINE = (
    "#0072b2",
    "#d55e00",
    "#333333",
)  # told apart by colour-blind eyes, too (Okabe, Ito 2008)
CLASSES = dict(zip(THREATS, ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"), strict=True))
DECISIONS = {"gbad": ("#0072b2", "-"), "classes": ("#d55e00", "-"), "combined": ("#009e73", "--")}
DPI = 150
BINS = 10  # of the reliability diagram
FEWEST = 5  # images in a bin that is drawn
GRID = 200  # points a side of the plane of losses


def draw(
    folder: Path, predictions: Predictions, losses: tuple[Floats, Floats], bundle: Bundle | None
) -> None:
    """Write the plots that the images allow into a folder, as PNG; raises OSError."""
    has_threat, has_benign = predictions.positive.any(), (~predictions.positive).any()
    if has_threat:
        _save(folder / "precision_recall.png", lambda axes: _precision_recall(axes, predictions))
        _save(folder / "reliability.png", lambda axes: _reliability(axes, predictions))
    if has_threat and has_benign:
        _save(folder / "roc.png", lambda axes: _roc(axes, predictions))
    if not np.isnan(losses[0]).all():
        _save(folder / "scores.png", lambda axes: _scores(axes, predictions))
        _save(folder / "losses.png", lambda axes: _plane(axes, predictions, losses, bundle))


def _save(path: Path, paint: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    paint(axes)
    figure.savefig(path, dpi=DPI)


def _precision_recall(axes: Axes, predictions: Predictions) -> None:
    for k, (name, color) in enumerate(CLASSES.items()):
        labels, scores = predictions.labels[:, k], ranked(predictions.probabilities[:, k])
        if not labels.any():
            continue
        precision, recall, _ = precision_recall_curve(labels, scores)
        ap = average_precision_score(labels, scores)
        axes.step(recall, precision, where="post", color=color, label=f"{name}: AP {100 * ap:.1f} %")
        axes.axhline(labels.mean(), color=color, linestyle=":", linewidth=1)
    axes.plot([], [], color=LINE, linestyle=":", linewidth=1, label="by chance: the share of positives")
    _name(axes, "Precision and recall, ungated", "recall", "precision")
    _percent(axes.xaxis, axes.yaxis)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
    axes.legend(fontsize="small")


def _roc(axes: Axes, predictions: Predictions) -> None:
    smallest = 0.5 / (~predictions.positive).sum()  # half a false alarm, where there is none
    for name, scores in predictions.scores.items():
        false, true, _ = roc_curve(predictions.positive, ranked(scores), drop_intermediate=False)
        area = 100 * roc_auc_score(predictions.positive, ranked(scores))
        color, line = DECISIONS[name]
        label = f"{name}: AUROC {area:.1f} %"
        axes.step(np.maximum(false, smallest), true, line, where="post", color=color, label=label)
    chance = np.geomspace(smallest, 1, 100)
    axes.plot(chance, chance, color=LINE, linestyle=":", linewidth=1, label="by chance")
    pfa, pd = (predictions.alarm[kind].mean() for kind in (~predictions.positive, predictions.positive))
    at = f"the alarm: PD {100 * pd:.1f} % at PFA {100 * pfa:.1f} %"
    axes.plot(max(pfa, smallest), pd, "o", color=LINE, label=at, zorder=5)
    _name(axes, "Detection against false alarms", "PFA (logarithmic)", "PD")
    axes.set(xscale="log", xlim=(smallest, 1), ylim=(0, 1.03))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _percent(axes.yaxis)
    axes.legend(fontsize="small", loc="upper left")


def _scores(axes: Axes, predictions: Predictions) -> None:
    scores = predictions.scores[predictions.decision]
    scored = scores[~np.isnan(scores)]
    bins = np.histogram_bin_edges(scored, bins=int(np.clip(np.sqrt(len(scored)), 10, 60)))
    for name, color, kind in (
        ("benign", BENIGN, ~predictions.positive),
        ("threat", THREAT, predictions.positive),
    ):
        values = scores[kind & ~np.isnan(scores)]
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            label = f"{name} ({counted(len(values), 'image')})"
            axes.hist(
                values,
                bins.tolist(),
                weights=weights,
                histtype="stepfilled",
                alpha=0.45,
                color=color,
                label=label,
            )
    axes.axvline(
        predictions.threshold, color=LINE, linestyle="--", label=f"alarm from {predictions.threshold:.3g} on"
    )
    _name(
        axes,
        f"Scores of the decision '{predictions.decision}'",
        "anomaly score",
        "share of the kind's images",
    )
    _percent(axes.yaxis)
    axes.legend(fontsize="small")


def _plane(
    axes: Axes, predictions: Predictions, losses: tuple[Floats, Floats], bundle: Bundle | None
) -> None:
    x, y = (np.maximum(loss, SMALLEST_LOSS) for loss in losses)
    order = np.random.default_rng(0).permutation(len(x))  # neither kind lies on top
    colors = np.where(predictions.positive, THREAT, BENIGN)[order]
    axes.scatter(x[order], y[order], s=9, c=colors, alpha=0.5, linewidths=0)
    scored = ~np.isnan(x)
    for name, color, kind in (
        ("benign", BENIGN, ~predictions.positive),
        ("threat", THREAT, predictions.positive),
    ):
        if (kind & scored).any():
            axes.scatter([], [], s=20, c=color, label=name)
    axes.set(xscale="log", yscale="log")
    if bundle is not None and "gbad" in bundle.manifest.decisions:
        threshold = _gbad_threshold(predictions, bundle)
        _boundary(axes, Decision.from_tensors("gbad", bundle.tensors()), threshold)
        axes.plot([], [], color=LINE, linestyle="--", label=f"'gbad' alarms from {threshold:.3g} on: above")
    _name(
        axes,
        "The two losses of each image",
        "reconstruction loss (logarithmic)",
        "feature-matching loss (logarithmic)",
    )
    axes.legend(fontsize="small", loc="lower right")


def _gbad_threshold(predictions: Predictions, bundle: Bundle) -> float:
    """Return the threshold of the alarm if `gbad` raises it, else that of the default operating point."""
    own = predictions.decision == "gbad"
    return predictions.threshold if own else operating_point(bundle, "fp32", "gbad").threshold


def _boundary(axes: Axes, decision: Decision, threshold: float) -> None:
    """Draw the line where a decision on the losses reaches a threshold, within the axes."""
    limits = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(*(np.geomspace(*limit, GRID) for limit in limits))
    logits = np.zeros((x.size, len(THREATS)))  # this decision does not look at them
    score = decision.score(x.ravel(), y.ravel(), logits).reshape(x.shape)
    axes.contour(x, y, score, levels=[threshold], colors=LINE, linestyles="--")
    axes.set(xlim=limits[0], ylim=limits[1])


def _reliability(axes: Axes, predictions: Predictions) -> None:
    scored = ~np.isnan(predictions.probabilities[:, 0])
    for k, (name, color) in enumerate(CLASSES.items()):
        labels, p = predictions.labels[scored, k], predictions.probabilities[scored, k]
        if labels.any():
            predicted, actual = _filled_bins(labels, p)
            axes.plot(predicted, actual, "o-", markersize=4, color=color, label=name)
    axes.plot([0, 1], [0, 1], color=LINE, linestyle=":", linewidth=1, label="as predicted")
    _name(axes, "Do the probabilities hold?", "mean probability in a bin", "share that holds the class")
    _percent(axes.xaxis, axes.yaxis)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
    axes.legend(fontsize="small")


def _filled_bins(labels: Flags, p: Floats) -> tuple[Floats, Floats]:
    """Mean prediction and share of positives in the bins of [0, 1] that hold enough images."""
    actual, predicted = calibration_curve(labels, p, n_bins=BINS)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p), minlength=BINS)
    enough = counts[counts > 0] >= FEWEST
    return predicted[enough], actual[enough]


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set(xlabel=x, ylabel=y)


def _percent(*directions: Axis) -> None:
    for direction in directions:
        direction.set_major_formatter(PercentFormatter(1, decimals=0))
