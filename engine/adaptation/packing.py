"""The files of an adapted bundle: those of the bundle it comes from, but for BiGAN, decisions and card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save

from ...export.to_onnx import export_bigan
from ..bundle import Bundle, write_bundle
from ..bundle.manifest import OPTIONAL_KEYS
from ..model.bigan import BiGAN
from ..model.decision import Decision
from ..model.gbad import GBAD
from ..model.typicality import Typicality
from ..text import timestamp
from ..training.packing.card import DEMO, points_table, with_typicality, without_forms
from ..training.packing.writing import gate_archive, thresholds
from ..training.phases.phase3 import Losses
from ..training.settings import Phase3Settings

OF_BEFORE = ("fp16", "bf16", "int8", "typicality")  # provenance that does not hold any longer
BEFORE = "\n## Before it was adapted\n"
TEXT = """# {name}

GBAD: a classifier of five threats, a BiGAN on its features of benign bags, and a decision on both.

{demo}## Adapted to a site

From the bundle {former} ({hash}), whose network it keeps: what is found is what that was trained on, and
nothing here measures it. {all} different images of the site, without labels, gave the rest. The BiGAN and
the standardization of its inputs learned from {fitted} of them, {steps} steps; {held} others, which these had
not seen, gave the scale of the losses and the operating points of `gbad` and `combined`, and all {kept} those
of `classes`. The forms and weights of the decisions are those of before.

{trimmed} images were left out, because their class scores lie clearly apart from the rest. A threat that is
not recognized so clearly stays and takes the place of a false alarm: with a share of such threats among the
images, alarms on harmless bags fall short of the PFA below by at most that share.

Over the last steps, D told {d_real:.2f} of (s, E(s)) and {d_fake:.2f} of (G(z), z) right, the standard
deviation of G(z) was {std_g:.2f} times that of s, of E(s) {std_e:.2f}.

## Operating points

Of the decision '{default}', in FP32.

{points}

## Limits

A false-alarm rate holds for bags like those images: adapt again when scanner, settings or passengers change.
{warnings}"""


@dataclass(frozen=True)
class Adapted:
    """What a site's images gave."""

    bigan: BiGAN
    decisions: Mapping[str, Decision]
    calibration: Mapping[str, Losses]  # of each decision
    typicality: tuple[Typicality, dict[str, Any]] | None  # with its provenance
    sample: torch.Tensor  # [2, features] features to trace the graph with
    provenance: dict[str, Any]


def pack(out: Path, name: str, former: Bundle, adapted: Adapted, settings: Phase3Settings) -> Bundle:
    """Write the adapted bundle, in FP32 alone, to the new folder `out`."""
    old = former.manifest
    form = old.preprocessing
    model = GBAD.from_arrays(old.architecture, former.tensors(), form.mean, form.std)
    model.bigan = adapted.bigan
    arrays = model.arrays()
    for decision in adapted.decisions.values():
        arrays |= decision.tensors()
    if adapted.typicality is not None:
        arrays |= adapted.typicality[0].tensors()
    images = former.gate().images
    bigan = export_bigan(model.bigan, adapted.sample)
    points = thresholds(adapted.decisions, adapted.calibration, settings)
    provenance = {key: value for key, value in old.provenance.items() if key not in OF_BEFORE}
    provenance["adapted"] = adapted.provenance
    if adapted.typicality is not None:
        provenance["typicality"] = adapted.typicality[1]
    content = (
        old.document()
        | points
        | {
            "name": name,
            "created": timestamp(),
            "provenance": provenance,
        }
    )
    for key in OPTIONAL_KEYS:  # of the losses as they were
        content.pop(key, None)
    files = {
        "weights.safetensors": save(arrays),
        "network.onnx": former.network_onnx,
        "bigan.onnx": bigan,
        "gate.tar": gate_archive(model, images),
        "README.md": _card(name, former, content).encode(),
    }
    return write_bundle(out, content, files)


def _card(name: str, former: Bundle, content: Mapping[str, Any]) -> str:
    """Write the card in Markdown, followed by that of the bundle as it was trained."""
    told, default = content["provenance"]["adapted"], former.manifest.default_decision
    counts = told["images"]
    text = TEXT.format(
        name=name,
        demo=DEMO if former.manifest.demo else "",
        former=former.manifest.name,
        hash=former.hash[:12],
        **counts,
        kept=counts["fitted"] + counts["held"],
        steps=told["phase2"]["steps"],
        **{key: told["bigan"][key] for key in ("d_real", "d_fake", "std_g", "std_e")},
        default=default,
        points=points_table(content["operating_points"]["fp32"][default]),
        warnings="".join(f"\n- {warning}\n" for warning in told["warnings"]),
    )
    if "typicality" in content["provenance"]:
        text = with_typicality(text, content["provenance"]["typicality"])
    before = without_forms(former.files["README.md"].decode(errors="replace"))
    _, was_adapted, trained = before.partition(BEFORE)
    lower = trained.lstrip() if was_adapted else re.sub("^#", "###", before, flags=re.MULTILINE)
    return f"{text}{BEFORE}\n{lower}"
