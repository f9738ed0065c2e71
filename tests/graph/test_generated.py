"""Networks put together at random from pieces that each need another rule: masked equals pruned for all of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.silence import silent_outputs
from onnxdistill.graph.surgery import remove_channels


class Piece(nn.Module):
    """Maps `[N, width, H, W]` to `[N, self.width, H, W]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class Plain(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width + 2)
        self.conv = nn.Conv2d(width, width + 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(width + 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Residual(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.conv1 = nn.Conv2d(width, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class Gate(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Depthwise(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.conv(x))


class Dense(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width + 3)
        self.conv = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.conv(x))], 1)


class Shuffle(Piece):
    """Widths are even here."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * ((width + 1) // 2))
        self.conv = nn.Conv2d(width, self.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, channels, height, width = x.shape
        x = x.reshape(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        left, right = x.chunk(2, 1)
        return torch.cat([right, left * torch.sigmoid(right)], 1)


class LastAxis(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class Attend(Piece):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.heads, self.each = 2, 4
        self.qkv, self.out = nn.Linear(width, 24), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        query, key, value = tokens.reshape(n, height * width, 3, self.heads, self.each).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(y).transpose(1, 2).reshape(n, -1, height, width)


class Grouped(Piece):
    """Widths are multiples of four here: four groups, or two."""

    def __init__(self, width: int) -> None:
        super().__init__(8)
        self.conv = nn.Conv2d(width, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4 if width % 2 else 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.grouped(self.conv(x)))


PIECES = (Plain, Residual, Gate, Depthwise, Dense, Shuffle, LastAxis, Attend, Grouped)


class Generated(nn.Module):
    def __init__(self, kinds: list[type[Piece]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        pieces: list[Piece] = []
        width = 6
        for kind in kinds:
            pieces.append(kind(width))
            width = pieces[-1].width
        self.pieces = nn.Sequential(*pieces)
        self.linear = nn.Linear(width * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pieces(self.stem(x))
        return self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1))


@settings(max_examples=20)
@given(kinds=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), seed=st.integers(0, 10_000))
def test_masked_equals_pruned(kinds: list[type[Piece]], seed: int) -> None:
    torch.manual_seed(seed)
    network = Generated(kinds).double().eval()
    example = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    analysis = analyse_channels(network, example)
    assert "stem" in {group.name for group in analysis.free}
    rng = np.random.default_rng(seed)
    for _ in range(3):
        kept = {g.name: np.sort(rng.permutation(g.size)[: rng.integers(1, g.size + 1)]) for g in analysis.free}
        smaller = remove_channels(network, analysis, kept, example)
        with torch.inference_mode():
            expected, actual = silent_outputs(network, analysis, kept, example), smaller(example)
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
