"""Tiny networks whose channel groups are known by hand: one a rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chain(nn.Module):
    """conv(3->6) bn relu conv(6->4) relu mean linear(4->2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x)).mean((2, 3))
        return self.linear(x)


class Residual(nn.Module):
    """The stream (4) runs through stem, conv2 and linear; the inside (6) through conv1 and conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Padded(nn.Module):
    """Option A: of conv1's 8 channels, 2..5 meet the stem's 4 and 0, 1, 6, 7 meet zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, 2, padding=1)
        self.linear = nn.Linear(8, 2)
        self.zeros = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv1(F.relu(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros))
        return self.linear(F.relu(x).mean((2, 3)))


class Concatenated(nn.Module):
    """Channels 0..3 of the joint come from left, 4..8 from right."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 5, 1)
        self.joint = nn.Conv2d(9, 6, 3, padding=1)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.linear(F.relu(self.joint(F.relu(x))).mean((2, 3)))


class DepthwiseSeparable(nn.Module):
    """The depthwise convolution belongs to the channels that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.bn = nn.BatchNorm2d(6)
        self.pointwise = nn.Conv2d(6, 5, 1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn(self.depthwise(F.relu6(self.stem(x)))))
        return self.linear(F.relu(self.pointwise(x)).mean((2, 3)))


class Grouped(nn.Module):
    """Two groups: channels j and j + 4 of the stem go together, and j and j + 3 of the grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        return self.linear(x.mean((2, 3)))


class Flattened(nn.Module):
    """Every channel of the convolution is 2 x 2 inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear1 = nn.Linear(16, 6)
        self.linear2 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(F.relu(self.conv(x)), 2)
        return self.linear2(torch.tanh(self.linear1(x.view(x.shape[0], -1))))


class SqueezeExcite(nn.Module):
    """The gate's last layer goes with the channels that it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.excite = nn.Conv2d(4, 6, 1)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.linear((x * gate).mean((2, 3)))


class Shared(nn.Module):
    """One convolution used twice: what it gives is what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.shared = nn.Conv2d(5, 5, 3, padding=1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        return self.linear(x.mean((2, 3)))


class Scaled(nn.Module):
    """A bare parameter of the channels' width, as layer scale is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(5, 1, 1))
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x) * self.scale).mean((2, 3)))


class Unknown(nn.Module):
    """A cumulative sum over channels has no rule: the stem is frozen, what follows is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(self.stem(x), 1)
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


class Split(nn.Module):
    """Channels cut in two: both halves lose the same places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return self.linear(F.relu(self.conv(left * torch.sigmoid(right))).mean((2, 3)))


class Halves(nn.Module):
    """The same, with the width written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.linear((x[:, :3] * x[:, 3:]).mean((2, 3)))


class ManyGroups(nn.Module):
    """Four groups of two: whole groups go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        return self.linear(x.mean((2, 3)))


class Transposed(nn.Module):
    """A transposed convolution has its inputs first; a depthwise one goes with what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.depthwise = nn.ConvTranspose2d(6, 6, 2, 2, groups=6)
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.gelu(self.depthwise(F.gelu(self.up(F.gelu(self.stem(x)))))).mean((2, 3)))


class Normalised(nn.Module):
    """Layer norm over the last axis, and group norm: both groups lose the same places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer_norm = nn.LayerNorm(6)
        self.linear1 = nn.Linear(6, 8)
        self.group_norm = nn.GroupNorm(2, 8)
        self.linear2 = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(self.stem(x).permute(0, 2, 3, 1))
        x = self.group_norm(self.linear1(x).permute(0, 3, 1, 2))
        return self.linear2(F.silu(x).mean((2, 3)))


class Shuffled(nn.Module):
    """A channel shuffle between halves: j and j + 3 go together, and lie side by side after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, channels, height, width = x.shape
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return self.linear(F.relu(self.conv(F.relu(x))).mean((2, 3)))


class PixelShuffled(nn.Module):
    """Four neighbouring channels become one of four times the pixels; a resize keeps channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.pixel_shuffle(self.stem(x), 2), scale_factor=0.5, mode="bilinear")
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Embedding, class token and positions share the stream of width 6."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.token = nn.Parameter(torch.rand(1, 1, 6))
        self.positions = nn.Parameter(torch.rand(1, 9, 6))
        self.scale = nn.Parameter(torch.rand(6))
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding((x[:, 0, 0] > 0).long())
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.linear(torch.tanh(tokens * self.scale)[:, 0])


class Attention(nn.Module):
    """Three heads of four dimensions, widths by its own attributes: heads and their dimensions can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.heads, self.width = 3, 4
        self.qkv = nn.Linear(5, 36)
        self.out = nn.Linear(12, 5)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y = y.transpose(1, 2).reshape(n, length, self.heads * self.width)
        return self.linear((x + self.out(y)).mean(1))


class WindowAttention(nn.Module):
    """Attention in windows with a bias a head from a table, scaled by the width that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.heads = 2
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.table = nn.Parameter(torch.rand(7, 2))
        self.register_buffer("places", torch.arange(16) % 7)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        n, height, width, channels = x.shape
        x = x.view(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        scores = scores + self.table[self.places].view(4, 4, self.heads).permute(2, 0, 1)
        y = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.out(y).reshape(n, -1, 2).mean(1)


class Coupled(nn.Module):
    """PyTorch's attention asks for heads as wide as the stream: both go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        return self.linear((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Auxiliary(nn.Module):
    """A head that only training runs is cut along with what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.linear = nn.Linear(5, 2)
        self.auxiliary = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).mean((2, 3))
        if self.training:
            return self.linear(x) + self.auxiliary(x)
        return self.linear(x)


class HardCoded(nn.Module):
    """The size of a view is written into the code as a number, so the traced group cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(F.relu(self.conv(x)), 2)
        return self.linear(x.reshape(-1, 16))


class Versioned(nn.Linear):
    """Refuses weights that do not say which version of it they are of, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *parts: Any) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError("of another version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *parts)
