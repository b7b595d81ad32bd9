"""Phase I as in the report: the backbone with another final layer, and no feature pyramid."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import Refused
from ..system.progress import ProgressCallback, silent
from .run import TrainingRun, load_imagenet
from .settings import Phase1Settings, Stage, TrainSettings

# 15 epochs at 256 pixels; the report names no optimizer, rate or batch size: those are the project's
REPORTED = Phase1Settings(stages=(Stage(256, 15),), weight_decay=0.0, patience=15, average_decay=0.0)


def train_as_reported(settings: TrainSettings, progress: ProgressCallback = silent) -> list[dict[str, Any]]:
    """Run phase I as in the report and return the figures of each epoch, without a bundle.

    Raises Refused if the settings name a bundle to start from, because its network differs.
    """
    if settings.start is not None:
        raise Refused("--report-exact trains another network than bundles have: leave out --start")
    settings = replace(settings, phase1=REPORTED, phases=(1,))
    run = TrainingRun(settings, progress)
    run.prepare()
    network = ReportedNetwork(settings.architecture.backbone)
    load_imagenet(network.body, settings)
    network.to(settings.device)
    return replace(run.trainer(), pretrained=False).train(network)  # the report froze nothing


class ReportedNetwork(nn.Module):
    """Map normalized images [N, 3, S, S] to the pooled features of the backbone and the logits [N, 5]."""

    def __init__(self, backbone: str, classes: int = 5):
        super().__init__()
        import timm

        self.body = timm.create_model(backbone, pretrained=False, num_classes=classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features before the final layer, and logits."""
        maps = self.body.forward_features(images)  # type: ignore[operator]
        features: Tensor = self.body.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        logits: Tensor = self.body.get_classifier()(features)  # type: ignore[operator]
        return features, logits
