"""What is known of the weights that torchvision publishes, without downloading any."""

from __future__ import annotations

import pytest

from onnxdistill.networks.published import Preprocessing, is_published, published_preprocessing

USUAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("network", "weights", "expected"),
    [
        ("torchvision:resnet18", "IMAGENET1K_V1", Preprocessing(224, 256, *USUAL)),
        ("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1", Preprocessing(384, 384, *USUAL)),
        ("torchvision:inception_v3", "IMAGENET1K_V1", Preprocessing(299, 342, *USUAL)),
        ("torchvision:resnet18", "resnet18.pt", None),
        ("torchvision:resnet18", "none", None),
        ("resnet20", "IMAGENET1K_V1", None),
    ],
)
def test_how_images_become_inputs(network: str, weights: str, expected: Preprocessing | None) -> None:
    assert published_preprocessing(network, weights) == expected
    assert is_published(network, weights) == (expected is not None)
