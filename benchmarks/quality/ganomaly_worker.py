"""Trains anomalib's GANomaly on FOLDER/benign and scores FOLDER/judged; runs in anomalib's own environment.

`python ganomaly_worker.py FOLDER PIXELS EPOCHS` writes FOLDER/scores.npy, raw scores in the order of names.
Sizes and rates are anomalib's; images are scaled to [-1, 1], the range of its decoder, as in the paper:
Akcay et al., GANomaly, ACCV 2018.
"""

# pyright: reportMissingImports=false
import sys
from pathlib import Path

import numpy as np
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Ganomaly
from anomalib.pre_processing import PreProcessor
from lightning import seed_everything
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

SEED = 0
BATCH_SIZE = 32


def main(folder: Path, pixels: int, epochs: int) -> None:
    """Train, score, write."""
    seed_everything(SEED)
    scaled = Compose([Resize((pixels, pixels)), Normalize([0.5] * 3, [0.5] * 3)])
    model = Ganomaly(
        batch_size=BATCH_SIZE,
        pre_processor=PreProcessor(transform=scaled),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    benign = Folder(
        name="benign",
        root=folder,
        normal_dir="benign",
        train_batch_size=BATCH_SIZE,
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
    )
    engine = Engine(
        default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=epochs, limit_val_batches=0
    )
    engine.fit(model, benign)
    np.save(folder / "scores.npy", scores(model, folder / "judged", pixels))


@torch.no_grad()
def scores(model: Ganomaly, folder: Path, pixels: int) -> np.ndarray:
    """Mean squared difference of both latent vectors of each image, in the order of names: [n]."""
    model.eval()
    images = PredictDataset(folder, image_size=pixels)
    batches = DataLoader(images, BATCH_SIZE, collate_fn=images.collate_fn)
    return torch.cat([model(batch.image).pred_score for batch in batches]).numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
