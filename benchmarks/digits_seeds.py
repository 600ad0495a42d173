"""The digits network over several seeds: what the rate term costs in accuracy and saves in bits.

For each seed an ordinary and a rate-trained network are trained. The table shows accuracy on the
test split, which no setting was chosen on: of both float networks, of the rate-trained one with
weights in steps of 2^-8, and of its integer network with int8 activations (what the hardware
computes). Sizes are of the rate-trained network's weights; the file is the whole packed file with
its header and biases, in the codes that suit each layer best.

    python benchmarks/digits_seeds.py --seeds 5 --jobs 2
"""

import argparse
import copy
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.seed_table import format_header, format_row, mean_and_deviation

from egret.compiler import compile_network
from egret.files import write_text
from egret.golomb import golomb_bits
from egret.network import IntegerNetwork
from egret.recipes.digits import OPTIONS, PLAIN_OPTIONS, load_digits_split, train_digits
from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits
from egret.training import Split, TrainedModel, accuracy
from egret.value_map import count_values
from egret_sim.golden import reference_forward

ORDER = 0
"""The exp-Golomb order of the paper after rate-constrained training."""


@dataclass(frozen=True)
class SeedResult:
    """Figures of one seed; accuracies in per cent of the test split, sizes in bits per weight."""

    seed: int
    plain_accuracy: float
    rate_accuracy: float
    quantised_accuracy: float
    integer_accuracy: float
    plain_golomb: float
    golomb: float
    huffman: float
    entropy: float
    fixed_length: float
    file_bytes: int
    zeros: float
    """Share of the rate-trained network's weights that are 0, in per cent."""
    validation_plain: float
    validation_rate: float

    @property
    def difference(self) -> float:
        """Integer network's accuracy less the plain float network's, in points."""
        return self.integer_accuracy - self.plain_accuracy


def _quantised_accuracy(trained: TrainedModel, network: IntegerNetwork, test: Split) -> float:
    model = copy.deepcopy(trained.model)
    with torch.no_grad():
        for layer in network.layers:
            weight = torch.from_numpy(layer.weight.dequantize())
            model.get_parameter(layer.weight_name).copy_(weight)
    return accuracy(model, test)


def integer_accuracy(network: IntegerNetwork, test: Split) -> float:
    """Return the share of the samples that the golden model classifies correctly, 0 to 1.

    Parameters
    ----------
    network : IntegerNetwork
        What the hardware runs.
    test : Split
        Samples.
    """
    outputs = reference_forward(network, network.quantize_input(test.x.numpy()))
    return float((outputs[-1].results.argmax(axis=1) == test.y.numpy()).mean())


def _code_bits(network: IntegerNetwork) -> int:
    counts = (count_values(layer.weight.values)[1] for layer in network.layers)
    return sum(golomb_bits(count, ORDER) for count in counts)


def run_seed(seed: int) -> SeedResult:
    """Train both networks of one seed and measure them."""
    splits = load_digits_split()
    plain = train_digits(seed, lam=0.0)
    rate = train_digits(seed)
    network = compile_network(rate.model, splits.train.x)
    plain_network = compile_network(plain.model, splits.train.x)
    counts = [count_values(layer.weight.values)[1] for layer in network.layers]
    zeros = sum(int((layer.weight.values == 0).sum()) for layer in network.layers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rate.egret"
        network.save(path)
        file_bytes = path.stat().st_size
    return SeedResult(
        seed=seed,
        plain_accuracy=100 * accuracy(plain.model, splits.test),
        rate_accuracy=100 * accuracy(rate.model, splits.test),
        quantised_accuracy=100 * _quantised_accuracy(rate, network, splits.test),
        integer_accuracy=100 * integer_accuracy(network, splits.test),
        plain_golomb=_code_bits(plain_network) / network.weights,
        golomb=_code_bits(network) / network.weights,
        huffman=sum(map(huffman_bits, counts)) / network.weights,
        entropy=sum(map(entropy_bits, counts)) / network.weights,
        fixed_length=sum(map(fixed_length_bits, counts)) / network.weights,
        file_bytes=file_bytes,
        zeros=100 * zeros / network.weights,
        validation_plain=100 * plain.validation_accuracy,
        validation_rate=100 * rate.validation_accuracy,
    )


_COLUMNS = {
    "plain_accuracy": "plain %",
    "rate_accuracy": "rate %",
    "quantised_accuracy": "2^-8 %",
    "integer_accuracy": "integer %",
    "difference": "int-plain",
    "golomb": "EG-0",
    "huffman": "Huffman",
    "entropy": "entropy",
    "fixed_length": "fixed",
    "file_bytes": "file B",
    "zeros": "zeros %",
    "plain_golomb": "plain EG-0",
}


def _figures(result: SeedResult) -> dict[str, float]:
    return {name: getattr(result, name) for name in _COLUMNS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 (5)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds trained at once (1)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parsed = parser.parse_args(arguments)
    print(format_header(_COLUMNS))
    results = []
    with ProcessPoolExecutor(parsed.jobs) as pool:
        for result in pool.map(run_seed, range(parsed.seeds)):
            results.append(result)
            print(format_row(result.seed, _COLUMNS, _figures(result)), flush=True)
    mean, deviation = mean_and_deviation([_figures(result) for result in results])
    print(format_row("mean", _COLUMNS, mean))
    print(format_row("sd", _COLUMNS, deviation))
    if parsed.json is not None:
        figures = {
            "options": dataclasses.asdict(OPTIONS),
            "plain_options": dataclasses.asdict(PLAIN_OPTIONS),
            "seeds": [
                dataclasses.asdict(result) | {"difference": result.difference} for result in results
            ],
            "mean": mean,
            "sd": deviation,
        }
        write_text(parsed.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
