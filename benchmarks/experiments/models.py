"""The networks of the experiments; their sizes are fixed in `ARCHITECTURES`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from benchmarks.experiments.data import (
    CHARACTERS,
    CONTEXT,
    NEWS_VOCABULARY,
    NEWS_WORDS,
    PADDING,
    REVIEW_VOCABULARY,
    REVIEW_WORDS,
    SMS_VOCABULARY,
    SMS_WORDS,
)
from torch import nn

from egret.recipes.digits import DigitsMLP

__all__ = ["ARCHITECTURES", "Architecture"]

_SIDE = 28
_INITIAL_SCALE = 0.02
# Elsewhere products in bfloat16 are converted and take twice as long as those in float32.
_MIXED = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))


def _mixed_precision(model: nn.Module) -> torch.autocast:
    """Return a context in which a training multiplies in bfloat16; weights and sums are float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_MIXED and model.training)


class LeNet300(nn.Module):
    """LeNet-300-100: fully connected 784-300-100-10 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(_SIDE * _SIDE, 300)
        self.hidden2 = nn.Linear(300, 100)
        self.output = nn.Linear(100, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of flat images."""
        return self.output(torch.relu(self.hidden2(torch.relu(self.hidden1(x)))))


class ConvNet(nn.Module):
    """Two convolutions of 3 × 3 with 16 and 32 channels, pooled, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * (_SIDE // 4) ** 2, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of flat images."""
        x = x.view(-1, 1, _SIDE, _SIDE)
        for layer in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(torch.relu(layer(x)), 2)
        return self.output(torch.relu(self.hidden(x.flatten(1))))


class Block(nn.Module):
    """A transformer's layer: attention and two linear layers, each behind a norm."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
        """Return the layer's output, of the shape of `x`: (texts, length, width)."""
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, self._heads, width // self._heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        # torch's attention for CPUs takes several times as long in bfloat16.
        with torch.autocast("cpu", enabled=False):
            mixed = nn.functional.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=mask, is_causal=causal
            )
        x = x + self.drop(self.mix(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norm2(x)))))


class TextClassifier(nn.Module):
    """Word and place embeddings, transformer layers, and a linear layer on the mean word."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        classes: int,
        *,
        width: int = 64,
        heads: int = 4,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.place = nn.Parameter(_INITIAL_SCALE * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.token.weight, std=_INITIAL_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of texts, each a row of words' numbers."""
        # What no text of the batch uses costs nothing.
        used = x != PADDING
        length = int(used.sum(1).max())
        x, used = x[:, :length], used[:, :length]
        out = self.drop(self.token(x) + self.place[:length])
        with _mixed_precision(self):
            for block in self.blocks:
                out = block(out, used[:, None, None, :], False)
        weights = used.unsqueeze(2) / used.sum(1)[:, None, None]
        return self.head((self.norm(out) * weights).sum(1))


class CharacterGPT(nn.Module):
    """A causal transformer over characters, whose output layer is tied to its embedding."""

    def __init__(
        self, *, width: int = 128, heads: int = 4, hidden: int = 512, layers: int = 4
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(CHARACTERS, width)
        self.place = nn.Parameter(_INITIAL_SCALE * torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, 0.0) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS, bias=False)
        self.head.weight = self.token.weight
        nn.init.normal_(self.token.weight, std=_INITIAL_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the character after each place, (texts, length, characters)."""
        out = self.token(x) + self.place[: x.shape[1]]
        with _mixed_precision(self):
            for block in self.blocks:
                out = block(out, None, True)
            return self.head(self.norm(out)).float()


@dataclass(frozen=True)
class Architecture:
    """A network and its size.

    Parameters
    ----------
    title : str
        What it is.
    make : Callable[[], torch.nn.Module]
        Makes it, with weights drawn from torch's random state.
    parameters : int
        Trainable numbers, tied ones counted once.
    weights : int
        Those that a rate term charges: with two axes or more.
    """

    title: str
    make: Callable[[], nn.Module]
    parameters: int
    weights: int


ARCHITECTURES = {
    "digits-mlp": Architecture("64-256-128-10, ReLU", DigitsMLP, 50_826, 50_432),
    "lenet-300-100": Architecture("784-300-100-10, ReLU", LeNet300, 266_610, 266_200),
    "cnn": Architecture(
        "conv 3×3 of 16 and 32 channels, max-pooled, then 1568-128-10", ConvNet, 206_922, 206_736
    ),
    "news-transformer": Architecture(
        "8,000 words, 2 layers of width 64, 4 heads, 256 hidden",
        partial(TextClassifier, NEWS_VOCABULARY, NEWS_WORDS, 4),
        616_452,
        614_656,
    ),
    "review-transformer": Architecture(
        "8,000 words, 2 layers of width 64, 4 heads, 256 hidden",
        partial(TextClassifier, REVIEW_VOCABULARY, REVIEW_WORDS, 2),
        615_298,
        613_504,
    ),
    "sms-transformer": Architecture(
        "4,000 words, 2 layers of width 64, 4 heads, 256 hidden",
        partial(TextClassifier, SMS_VOCABULARY, SMS_WORDS, 2),
        358_786,
        356_992,
    ),
    "character-gpt": Architecture(
        "65 characters, context 128, 4 layers of width 128, 4 heads, 512 hidden, tied output",
        CharacterGPT,
        818_048,
        811_136,
    ),
}
"""The networks, by name."""
