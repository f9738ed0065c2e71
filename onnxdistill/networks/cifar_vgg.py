"""VGG-16 with batch norm for CIFAR-10: torchvision's convolutions, and one linear layer on their 512 channels."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import vgg16_bn


class CifarVGG(nn.Module):
    """The convolutions of Simonyan and Zisserman 2014, configuration D, for 32x32 images.

    Five poolings leave one place of 512 channels, which needs no hidden layers of 4096.

    Args:
        num_classes: Number of outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = vgg16_bn().features
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalised images `[N, 3, 32, 32]` to logits `[N, num_classes]`."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def vgg16(num_classes: int = 10) -> CifarVGG:
    """VGG-16 with batch norm: 14.73 M parameters, 313.2 M multiply-adds."""
    return CifarVGG(num_classes)
