"""Phase III: the decisions on an image's losses and class scores, by support vector machines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ...model.bigan import BiGAN
from ...model.calibration import CalibratedPoint, calibrate, threshold_at, wilson_interval
from ...model.decision import INPUTS, Decision, Scores, inputs
from ...model.network import Network
from ...system.progress import ProgressCallback
from ..settings import Phase3Settings
from .svm import Fitter, fit_by_sklearn

AT_ONCE = 1024  # images
LOSSES = ("log_reconstruction_loss", "log_feature_matching_loss")  # inputs of decisions, in units of a BiGAN
SMALLEST_SPREAD = 1e-6
SIMPLEST = ("gbad", "classes", "combined")  # the report's, a score by itself, and both


@dataclass(frozen=True)
class Losses:
    """Losses and logits of a set of images."""

    reconstruction: NDArray[np.float32]  # [n]
    feature_matching: NDArray[np.float32]  # [n]
    logits: NDArray[np.float32]  # [n, 5]
    labels: NDArray[np.bool_]  # [n, 5]

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Tell which images hold a threat, [n]."""
        return np.any(self.labels, axis=1)

    @property
    def probabilities(self) -> Scores:
        """Return the sigmoids of the logits, [n, 5]."""
        return 1 / (1 + np.exp(-self.logits.astype(np.float64)))

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Losses":
        """Return the images at these positions."""
        return Losses(*(getattr(self, field)[index] for field in self.__dataclass_fields__))

    def inputs(self, decision: str) -> Scores:
        """Return the inputs [n, d] of a decision."""
        return inputs(decision, self.reconstruction, self.feature_matching, self.logits)

    def scores(self, decision: Decision) -> Scores:
        """Return the scores [n] of a decision."""
        return decision.score(self.reconstruction, self.feature_matching, self.logits)


@torch.no_grad()
def losses_of(bigan: BiGAN, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return reconstruction_loss [n] and feature_matching_loss [n] of features x [n, d]."""
    parts = [bigan(torch.from_numpy(x[start : start + AT_ONCE])) for start in range(0, len(x), AT_ONCE)]
    reconstruction, matching = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return reconstruction, matching


def fc5_logits(network: Network, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits [n, 5] that FC5 gives features x [n, d]."""
    weight, bias = (network.state_dict()[f"fc5.{name}"].numpy() for name in ("weight", "bias"))
    return x @ weight[:, :, 0, 0].T + bias


def fit_decisions(
    train: Losses,
    validation: Losses,
    settings: Phase3Settings,
    seed: int,
    progress: ProgressCallback,
    fitter: Fitter = fit_by_sklearn,
) -> dict[str, Decision]:
    """Fit the three decisions of a bundle.

    `gbad` is the SVM on both losses of the training images, as in the report, whose losses are lower than
    those of any other; with `heldout` it is fitted on one half of the validation images and chosen on the
    other. `combined` is fitted on validation images, since the class scores of training images are better
    than those of any other.
    """
    decisions = {"classes": class_maximum()}
    random = np.random.default_rng((seed, 3))
    progress("phase III", 0, 2, {})
    fitted, judged = halves(validation, seed) if settings.heldout else (train, validation)
    decisions["gbad"] = fit_svm("gbad", fitted, judged, settings, random, fitter)
    progress("phase III", 1, 2, {})
    linear = replace(settings, gammas=())
    decisions["combined"] = fit_svm("combined", validation, validation, linear, random, fitter)
    progress("phase III", 2, 2, {})
    return decisions


def halves(losses: Losses, seed: int) -> tuple[Losses, Losses]:
    """Divide images into two halves with the same share of positives."""
    random = np.random.default_rng((seed, 5))
    order = random.permutation(len(losses.labels))
    order = order[np.argsort(losses.positive[order], kind="stable")]
    return losses.take(np.sort(order[::2])), losses.take(np.sort(order[1::2]))


def class_maximum() -> Decision:
    """Return the decision whose score is the largest logit."""
    one, zero = np.ones(1), np.zeros(1)
    return Decision("classes", mean=zero, std=one, weights=one, intercept=zero)


def fit_svm(
    name: str,
    train: Losses,
    validation: Losses,
    settings: Phase3Settings,
    random: np.random.Generator,
    fitter: Fitter = fit_by_sklearn,
) -> Decision:
    """Fit a class-weighted SVM: kernel, C and gamma by partial AUROC on validation, among monotone ones.

    The search runs on a stratified sample, the final fit on all of `train`. A linear SVM is always monotone:
    an input whose weight would be negative is left out.
    """
    sample = train.take(_sample(train.positive, settings, random))
    choices: list[float | None] = [None, *settings.gammas]
    best: tuple[float, float, float | None] | None = None
    for gamma in choices:
        for cost in settings.costs:
            candidate = _fit(fitter, name, sample, cost, gamma)
            if gamma is not None and not is_monotone(candidate):
                continue
            value = partial_auroc(validation.scores(candidate), validation.positive, settings.largest_pfa)
            if best is None or value > best[0]:
                best = value, cost, gamma
    assert best is not None
    final = _fit(fitter, name, train, *best[1:])
    # the last fit sees more images than the search did, so it is tested again
    return final if is_monotone(final) else _fit(fitter, name, train, best[1], None)


def _fit(fitter: Fitter, name: str, losses: Losses, cost: float, gamma: float | None) -> Decision:
    values = losses.inputs(name)
    mean, std = values.mean(axis=0), np.maximum(values.std(axis=0), SMALLEST_SPREAD)
    u = (values - mean) / std
    empty = Decision(name, mean=mean, std=std, weights=np.zeros(len(mean)), intercept=np.zeros(1))
    if gamma is None:
        return _fit_linear(fitter, empty, u, losses.positive, cost)
    machine = fitter(u, losses.positive, cost, gamma)
    return replace(
        empty,
        weights=np.ones(len(mean)),
        intercept=machine.intercept,
        support=machine.support,
        coefficients=machine.coefficients,
        gamma=np.array([gamma]),
        low=u.min(axis=0),
        high=u.max(axis=0),
    )


def _fit_linear(
    fitter: Fitter, empty: Decision, u: Scores, positive: NDArray[np.bool_], cost: float
) -> Decision:
    """Fit, leaving out inputs until no weight is negative."""
    kept = list(range(u.shape[1]))
    while kept:
        machine = fitter(u[:, kept], positive, cost, None)
        weights = machine.weights
        if (weights >= 0).all():
            break
        kept.pop(int(np.argmin(weights)))
    else:
        # no monotone fit: the first input by itself is one
        return replace(empty, weights=np.eye(u.shape[1])[0])
    full = np.zeros(u.shape[1])
    full[kept] = weights
    return replace(empty, weights=full, intercept=machine.intercept)


def is_monotone(decision: Decision, points: int = 41, reach: float = 40.0) -> bool:
    """Test on a grid that the score never falls when an input rises.

    The grid spans the training range finely and `reach` standard deviations beyond it coarsely.
    """
    d = len(INPUTS[decision.name])
    low = decision.low if decision.low is not None else np.full(d, -4.0)
    high = decision.high if decision.high is not None else np.full(d, 4.0)
    beyond = np.geomspace(0.1, reach, 8)
    axes = [
        np.concatenate([a - beyond[::-1], np.linspace(a, b, points), b + beyond])
        for a, b in zip(low, high, strict=True)
    ]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    scores = decision.score_inputs(grid * decision.std + decision.mean).reshape([len(axis) for axis in axes])
    slack = 1e-9 * max(1.0, float(np.abs(scores).max()))  # rounding
    return all(bool((np.diff(scores, axis=axis) >= -slack).all()) for axis in range(d))


def partial_auroc(scores: Scores, positive: NDArray[np.bool_], largest_pfa: float) -> float:
    """Return the area under the ROC up to a false-alarm rate; chance gives 0.5 (McClish 1989)."""
    return float(roc_auc_score(positive, scores, max_fpr=largest_pfa))


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC."""
    return float(roc_auc_score(positive, scores))


def choose_default(decisions: dict[str, Decision], validation: Losses, pfa: float = 0.02) -> str:
    """Return the first of SIMPLEST whose PD at this PFA lies in the 95 % interval of the best decision's.

    Of what validation cannot tell apart, what needs less is likelier to hold on other images: the rule of one
    standard error (Breiman et al., Classification and Regression Trees, 1984), with an interval.
    """
    detected = {
        name: _detection(validation.scores(each), validation.positive, pfa)
        for name, each in decisions.items()
    }
    best = max(detected.values())
    positives = int(validation.positive.sum())
    low, _ = wilson_interval(round(best * positives), positives)
    return next(name for name in SIMPLEST if detected[name] >= low)


def _detection(scores: Scores, positive: NDArray[np.bool_], pfa: float) -> float:
    """Return the share of positives at or above the threshold of a false-alarm rate."""
    return float((scores[positive] >= threshold_at(scores[~positive], pfa)).mean())


def restandardized(decision: Decision, benign: Losses) -> Decision:
    """Give a decision the units of another BiGAN's losses; its form, weights and use of class scores stay.

    A loss is then standardized by these benign images. Threats, which have a part in the units of a training,
    are few there, and a shift of all scores falls to the operating points.
    """
    values, mean, std = benign.inputs(decision.name), decision.mean.copy(), decision.std.copy()
    for k, name in enumerate(INPUTS[decision.name]):
        if name in LOSSES:
            mean[k], std[k] = values[:, k].mean(), max(values[:, k].std(), SMALLEST_SPREAD)
    return replace(decision, mean=mean, std=std)


def operating_points(decision: Decision, benign: Losses, settings: Phase3Settings) -> list[CalibratedPoint]:
    """Set a decision's operating points on the benign images of the calibration split."""
    scores = benign.scores(decision)
    return calibrate(scores, benign.probabilities, settings.pfas, settings.support_events)


def _sample(
    positive: NDArray[np.bool_], settings: Phase3Settings, random: np.random.Generator
) -> NDArray[np.intp]:
    """Draw positions for the search, of both kinds."""
    kinds: Sequence[tuple[bool, int]] = ((True, settings.search_positive), (False, settings.search_benign))
    return np.concatenate([random.permutation(np.flatnonzero(positive == kind))[:n] for kind, n in kinds])
