"""Plots of a training: losses and figures by epoch, the BiGAN's balance, predictions beside the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..row import THREATS, threat_names
from .data import Labelled
from .pixels import decoded

WIDTH_IN, HEIGHT_IN = 9.0, 3.6


def draw_epochs(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw training loss and validation mAP, then precision, recall and F1 of both samples, by epoch."""
    epochs = [line["epoch"] for line in lines]
    figure, (left, right) = _axes(2)
    left.plot(epochs, [line["loss"] for line in lines], "o-", color="tab:red")
    left.set(xlabel="epoch", ylabel="training loss (smoothed)", title="Binary cross-entropy")
    for where, colour in (("training", "tab:blue"), ("validation", "tab:orange")):
        right.plot(epochs, _column(lines, f"{where}_map"), "o-", color=colour, label=where)
    right.set(xlabel="epoch", ylabel="mAP", title="Mean average precision", ylim=(0, 1))
    right.legend()
    _save(figure, folder / "epochs.png")
    figure, panels = _axes(3)
    for axes, kind in zip(panels, ("precision", "recall", "f1"), strict=True):
        for where, colour in (("training", "tab:blue"), ("validation", "tab:orange")):
            for average, style in (("micro", "-"), ("macro", "--")):
                values = _column(lines, f"{where}_{kind}_{average}")
                axes.plot(epochs, values, style, color=colour, label=f"{where}, {average}")
        axes.set(xlabel="epoch", ylim=(0, 1), title="F1" if kind == "f1" else kind.capitalize())
    panels[0].legend(fontsize="small")
    _save(figure, folder / "precision_recall_f1.png")


def draw_bigan(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the reconstruction term and the quantities of the collapse check, by step."""
    lines = [line for line in lines if line["phase"] == "phase2"]
    steps = [line["step"] for line in lines]
    figure, (left, middle, right) = _axes(3)
    left.plot(steps, _column(lines, "reconstruction"), color="tab:red")
    left.set(xlabel="step", title="mean |s - G(E(s))|")
    for key, label in (("d_real", "(s, E(s))"), ("d_fake", "(G(z), z)")):
        middle.plot(steps, _column(lines, key), label=label)
    middle.axhline(0.98, color="grey", linestyle=":")
    middle.set(xlabel="step", title="D tells right", ylim=(0, 1.02))
    middle.legend()
    for key, label in (("std_g", "G(z), by that of s"), ("std_e", "E(s)")):
        right.plot(steps, _column(lines, key), label=label)
    for bound in (0.3, 3.0):
        right.axhline(bound, color="grey", linestyle=":")
    right.set(xlabel="step", title="Standard deviation", yscale="log")
    right.legend()
    _save(figure, folder / "bigan.png")


def draw_samples(folder: Path, chosen: Labelled, predicted: NDArray[np.float32], size: int) -> None:
    """Draw images with their true labels and the classes predicted at p >= 0.5."""
    columns = 4
    rows = -(-len(chosen.paths) // columns)
    figure, panels = _axes(columns, rows, height=2.9 * rows)
    for axes in panels.ravel():
        axes.axis("off")
    for axes, image, truth, p in zip(
        panels.ravel(), decoded(chosen.paths, size), chosen.labels, predicted, strict=False
    ):
        if image is None:
            continue
        axes.imshow(image)
        right = np.array_equal(truth, p >= 0.5)
        classes = " ".join(
            f"{name} {value:.2f}" for name, value in zip(THREATS, p, strict=True) if value >= 0.5
        )
        title = f"is: {_names(truth)}\npredicted: {classes or 'benign'}"
        axes.set_title(title, fontsize=7, color="black" if right else "tab:red")
    _save(figure, folder / "samples.png")


def _names(truth: NDArray[np.bool_]) -> str:
    return ", ".join(threat_names(truth)) or "benign"


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [np.nan if line.get(key) is None else line[key] for line in lines]


def _axes(columns: int, rows: int = 1, height: float = HEIGHT_IN) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=rows == 1)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
