"""What a detector could learn without looking at shapes: a guard against a generator that gives it away."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gbad_batch.engine.datasets import find_images, join, read_labels

BINS = 8  # of each channel's histogram
FITTED = 0.7  # of the images
AIR = 24  # levels from the commonest colour within which a pixel is background


def guard_auroc(archive: Path) -> float:
    """AUROC of a logistic regression on what is no shape, fitted on a part of an archive, judged on the rest.

    It sees colour histograms, image size and the share of foreground. Near 0.5 such cues tell nothing.
    """
    labels = read_labels(archive)
    paths = find_images(archive / "images")
    position = join(labels, [str(path) for path in paths])
    # not every so many: in `synth`'s archives every so many hold a threat
    order = np.random.default_rng(0).permutation(len(position))
    cues, positive = np.stack([_cues_of(paths[position[k]]) for k in order]), labels.positive[order]
    fitted = round(FITTED * len(order))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(cues[:fitted], positive[:fitted])
    return float(roc_auc_score(positive[fitted:], model.decision_function(cues[fitted:])))


def _cues_of(path: Path) -> NDArray[np.float64]:
    picture = Image.open(path)
    pixels = np.asarray(picture.resize((128, 128), Image.Resampling.BOX))
    histograms = [np.histogram(pixels[..., c], BINS, (0, 256))[0] / pixels[..., c].size for c in range(3)]
    air = np.median(np.concatenate([pixels[0], pixels[-1]]), axis=0)
    foreground = (np.abs(pixels - air).max(axis=-1) > AIR).mean()
    width, height = picture.size
    return np.concatenate([*histograms, [foreground, np.log(width), np.log(height)]])
