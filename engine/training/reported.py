"""Phase I as the report has it: the backbone with its final layer changed, and no feature pyramid."""

from torch import Tensor, nn

from .augment import Augmentation
from .phases.phase1 import Phase1Settings, Stage

# 15 epochs at 256 pixels; the report names no optimizer, rate or batch size: those are the project's
REPORTED = Phase1Settings(
    stages=(Stage(256, 15),), weight_decay=0.0, patience=15, augmentation=Augmentation(), average_decay=0.0
)


class ReportedNetwork(nn.Module):
    """Normalized images [N, 3, S, S] to the pooled features of the backbone and the logits [N, 5]."""

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
