"""What the CPU engine's losses and scores differ by from torch's, on synthetic bags."""

from contextlib import closing

import numpy as np
import torch

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import Outputs, open_engine
from gbad_batch.engine.synth import gate_images
from gbad_batch.export import engine_for

IMAGES = 64
SEED = 77  # not the gate's


def network_exactness() -> dict[str, float]:
    """Compare OpenVINO with torch in float32, both from the default bundle.

    `loss_rel_max` is the largest relative difference of either loss, `score_max` the largest difference of a
    score of any decision, in standard deviations of its benign scores.
    """
    bundle = Bundle.read(default_bundle_path())
    architecture, form = bundle.manifest.architecture, bundle.manifest.preprocessing
    decode = Decoder(architecture.input_size, DecodeLimits())
    decoded = [decode(Row("bag"), blob) for blob in gate_images(IMAGES, SEED, architecture.input_size)]
    pixels = np.stack([picture for picture in decoded if picture is not None])
    with closing(open_engine(engine_for(bundle, device="cpu", precision="fp32"))) as runner:
        ours = runner(pixels)
    model = GBAD.from_arrays(architecture, bundle.tensors(), form.mean, form.std)
    with torch.inference_mode():
        plain = Outputs(*(tensor.numpy() for tensor in model(torch.from_numpy(pixels))))
    return {
        "loss_rel_max": _loss_difference(ours, plain),
        "score_max": _score_difference(bundle, ours, plain),
    }


def _loss_difference(ours: Outputs, plain: Outputs) -> float:
    pairs = (
        (ours.reconstruction_loss, plain.reconstruction_loss),
        (ours.feature_matching_loss, plain.feature_matching_loss),
    )
    return max(float(np.max(np.abs(a - b) / np.abs(b))) for a, b in pairs)


def _score_difference(bundle: Bundle, ours: Outputs, plain: Outputs) -> float:
    differences = []
    for name in bundle.manifest.decisions:
        decision = Decision.from_tensors(name, bundle.tensors())
        a, b = (
            decision.score(o.reconstruction_loss, o.feature_matching_loss, o.logits) for o in (ours, plain)
        )
        differences.append(float(np.abs(a - b).max()) / bundle.manifest.benign_score_std[name])
    return max(differences)
