"""anomalib's predict over a folder, asked by `systems.Loop`; runs in anomalib's own environment.

`python anomalib_worker.py BACKBONE PIXELS FOLDER` makes DFM on that backbone, the model of anomalib's nearest
to GBAD: an image's features from the last stage of a CNN, and how badly a linear model of benign ones
reconstructs them. Weights are random, on which speed does not depend; its linear model is fitted on the
images in FOLDER. Then each line asked is answered with one, as `loop_worker.py` does.
Ahuja et al., Probabilistic Modeling of Deep Features for Out-of-Distribution and Adversarial Detection, 2019.
"""

# pyright: reportMissingImports=false
import csv
import json
import logging
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Dfm
from anomalib.pre_processing import PreProcessor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Worker:
    """DFM fitted on some images, ready to predict."""

    def __init__(self, backbone: str, pixels: int, pictures: Path, scratch: str):
        network: Any = timm.create_model(backbone, pretrained=False, features_only=True)
        self.pixels = pixels
        self.model = Dfm(
            backbone=backbone,
            layer=network.feature_info.module_name()[-1],
            pre_trained=False,
            pooling_kernel_size=pixels // 32,  # the whole map
            pre_processor=PreProcessor(transform=Compose([Resize((pixels, pixels)), Normalize(*IMAGENET)])),
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
        self.engine = Engine(default_root_dir=scratch, accelerator="cpu", limit_val_batches=0, **QUIET)
        benign = Folder(
            name="pictures",
            root=pictures.parent,
            normal_dir=pictures.name,
            train_batch_size=8,
            num_workers=0,
            test_split_mode="none",
            val_split_mode="none",
        )
        self.engine.fit(self.model, benign)

    def answer(self, folder: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Predict the images of a folder and write their scores."""
        torch.set_num_threads(settings["threads"])
        cpu, began = _cpu_seconds(), time.perf_counter()
        images = PredictDataset(folder, transform=Resize((self.pixels, self.pixels), antialias=True))
        loader = DataLoader(
            images, settings["batch"], num_workers=settings["workers"], collate_fn=images.collate_fn
        )
        batches = self.engine.predict(self.model, dataloaders=loader)
        rows = [pair for b in batches for pair in zip(b.image_path, b.pred_score.tolist(), strict=True)]
        with out.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return {
            "images": len(rows),
            "seconds": time.perf_counter() - began,
            "cpu_seconds": _cpu_seconds() - cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        }


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main(backbone: str, pixels: str, pictures: str) -> None:
    """Answer until there is no more to read; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    with tempfile.TemporaryDirectory() as scratch:
        worker = Worker(backbone, int(pixels), Path(pictures), scratch)
        say({})
        for line in sys.stdin:
            asked = json.loads(line)
            say(worker.answer(Path(asked["folder"]), Path(asked["out"]), asked["settings"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
