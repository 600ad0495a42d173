"""What the rate term costs: its step beside a training step of a GPT.

A training step is forward, backward and AdamW. On the CPU it is that of a GPT with 30 million
parameters on 8 sequences of 256 tokens, in float32; where there is a GPU, also that of GPT-2 small
(124 million) on 8 of 1,024 there, with products in bfloat16. The rate steps are those of the last
part of a training, in which zeros are held: no others cost more. `every=1` estimates the shape and
counts the bits after every step, the default after every tenth. Both are timed in one run, in turn
with the training steps: on the CPU in CPU seconds of all threads, so that what else the machine
does changes the ratio little; on a GPU from one moment in which it has nothing to do to the next.

    python -m benchmarks.rate_step --json docs/results/rate-step.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from egret.files import write_text
from egret.rate import DEFAULT_EVERY, RateRegularizer

SEQUENCES = 8
_SEED = 1
_STEPS = 1_000_000
# Steps after which the rate begins to pull, and after which zeros are held.
_PULLS, _HOLDS = _STEPS // 5, _STEPS * 4 // 5


class Size(NamedTuple):
    """Sizes of a GPT, in the order that it takes them."""

    width: int
    heads: int
    layers: int
    vocabulary: int
    tokens: int


GPT_30M = Size(512, 8, 8, 8192, 256)
GPT2_SMALL = Size(768, 12, 12, 50257, 1024)
_TINY = Size(32, 2, 2, 64, 16)


class Block(nn.Module):
    """A block of a GPT: attention to what came before, and a network of two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output; `x` has shape (sequences, tokens, width)."""
        parts = self.attend(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.join(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A GPT whose output layer is tied to its embedding."""

    def __init__(self, width: int, heads: int, layers: int, vocabulary: int, tokens: int) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits; `tokens` has shape (sequences, tokens)."""
        x = self.embed(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.accelerator.synchronize(device)
    began = time.perf_counter()
    work()
    torch.accelerator.synchronize(device)
    return time.perf_counter() - began


def measure(size: Size, device: torch.device, rounds: int) -> dict[str, float]:
    """Time training steps and rate steps in turn.

    Parameters
    ----------
    size : Size
        Of the GPT.
    device : torch.device
        Where it is trained.
    rounds : int
        Rounds; each has one training step and one call of each rate step, and `DEFAULT_EVERY` of
        the default.

    Returns
    -------
    dict of str to float
        Medians in seconds (on the CPU in CPU seconds) of a training step, of the rate step with
        `every=1`, and of the mean of `DEFAULT_EVERY` rate steps with the default; the two ratios;
        and the number of parameters.
    """
    torch.manual_seed(_SEED)
    model = GPT(*size).to(device)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
    generator = torch.Generator().manual_seed(_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    each = RateRegularizer(model, target_bits=1.0, steps=_STEPS, every=1)
    tenth = RateRegularizer(model, target_bits=1.0, steps=_STEPS)

    def train() -> None:
        shape = SEQUENCES, size.tokens + 1
        batch = torch.randint(size.vocabulary, shape, generator=generator).to(device)
        optimizer.zero_grad()
        with mixed:
            logits = model(batch[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()

    def default() -> None:
        for _ in range(DEFAULT_EVERY):
            tenth.step(optimizer)

    times: dict[str, list[float]] = {"training step": [], "every=1": [], "default": []}
    train()
    for rate in (each, tenth):
        for calls in (_PULLS, _HOLDS):
            rate.load_state_dict(rate.state_dict() | {"calls": calls})
            rate.step(optimizer)
    for _ in range(rounds):
        times["training step"].append(_seconds(train, device))
        times["every=1"].append(_seconds(lambda: each.step(optimizer), device))
        times["default"].append(_seconds(default, device) / DEFAULT_EVERY)
    found = {name: statistics.median(values) for name, values in times.items()}
    for name in ("every=1", "default"):
        found[f"ratio, {name}"] = found[name] / found["training step"]
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), **found}


def _show(size: Size, device: torch.device, rounds: int) -> dict[str, float]:
    found = measure(size, device, rounds)
    print(
        f"{found['parameters'] / 1e6:.1f} million parameters, {SEQUENCES} x {size.tokens} tokens, "
        f"on {device}:"
    )
    for name in ("training step", "every=1", "default"):
        share = f"  {100 * found[f'ratio, {name}']:5.1f} %" if name != "training step" else ""
        print(f"{name:>14} {1000 * found[name]:9.1f} ms{share}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds timed (5)")
    parser.add_argument("--small", action="store_true", help="a tiny GPT, to try the program")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parsed = parser.parse_args(arguments)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads",
        flush=True,
    )
    figures: dict[str, object] = {"threads": torch.get_num_threads()}
    figures |= _show(_TINY if parsed.small else GPT_30M, torch.device("cpu"), parsed.rounds)
    if torch.accelerator.is_available():
        gpu = torch.accelerator.current_accelerator()
        assert gpu is not None
        figures["gpu"] = _show(_TINY if parsed.small else GPT2_SMALL, gpu, parsed.rounds)
    else:
        print("no GPU here: GPT-2 small was not timed")
    if parsed.json is not None:
        write_text(parsed.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
