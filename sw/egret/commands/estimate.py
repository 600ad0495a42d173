"""`egret estimate`: how long an accelerator takes for a packed file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egret.command import Command, add_params_arguments, chosen_params

if TYPE_CHECKING:
    from egret.estimate import Estimate

__all__ = ["command"]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 1 to 1000")
    return int(text)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packed file (.egret)")
    add_params_arguments(parser)
    parser.add_argument(
        "--batch",
        metavar="B",
        type=_count,
        help="vectors that each weight is multiplied by (default: that of the parameters)",
    )
    parser.add_argument(
        "--codes",
        default="auto",
        help="codes to choose from, separated by commas: eg-k, eg-0 to eg-7, eg-run, eg-table "
        "(default: auto, all that the accelerator knows)",
    )
    parser.add_argument(
        "--passes",
        metavar="N",
        type=_count,
        default=1,
        help="passes of inputs, one behind the other (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")


def _run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from egret.estimate import estimate, file_image

    params = chosen_params(arguments)
    if arguments.batch is not None:
        params = replace(params, batch=arguments.batch)
    found = estimate(
        file_image(arguments.file, params, codes=arguments.codes), passes=arguments.passes
    )
    if arguments.json:
        import json

        print(json.dumps(_object(found, arguments), indent=2))
    else:
        print(_table(found))


def _object(found: "Estimate", arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "file": str(arguments.file),
        "accelerator": found.params.name,
        "batch": found.params.batch,
        "passes": arguments.passes,
        "cycles": found.cycles,
        "roof": found.roof,
        "words": found.words,
        "code_bits": found.code_bits,
        "multiplied": found.multiplied,
        "bus_use": found.bus_use,
        "multiplier_use": found.multiplier_use,
        "layers": [
            {
                "name": layer.name,
                "cycles": layer.cycles,
                "roof": layer.roof,
                "code_bits": layer.code_bits,
                "multiplied": layer.multiplied,
                "bus_use": layer.bus_use,
                "multiplier_use": layer.multiplier_use,
                "bound": layer.bound,
            }
            for layer in found.layers
        ],
    }


def _table(found: "Estimate") -> str:
    width = max(5, *(len(layer.name) for layer in found.layers))
    lines = [f"{'layer':{width}}      cycles        roof     bus  multipliers  bound"]
    lines += [
        f"{layer.name:{width}}  {layer.cycles:10,}  {layer.roof:10,.0f}  {layer.bus_use:6.1%}  "
        f"{layer.multiplier_use:11.1%}  {layer.bound}"
        for layer in found.layers
    ]
    lines.append(
        f"{'total':{width}}  {found.cycles:10,}  {found.roof:10,.0f}  {found.bus_use:6.1%}  "
        f"{found.multiplier_use:11.1%}"
    )
    lines.append(f"{found.params.name}: {found.cycles / found.roof:.3f} times the roof")
    return "\n".join(lines)


command = Command(
    name="estimate",
    summary="predict the clock cycles that a packed file takes, without simulating",
    description="""Predict how many clock cycles one accelerator takes for a packed file, layer by
layer: cycles; the roof, which is the code bits at the rate of the bus, or the multiplications
spread over all lanes; how busy that keeps bus and multipliers; and what most cycles are needed of:
the bus, the multipliers, or the rows, of which one a cycle leaves. A layer's cycles count from the
end of the one before; the total goes on to the last result. The streams are taken not to pause.

Of a file with a network, its layers run one behind the other; of any other file, each tensor of
two or more axes is a matrix that takes its own activations. Tables that stay are loaded before.

examples:
  egret estimate model.egret --preset m-ddr3
  egret estimate model.egret --config mine.yml --batch 4 --json""",
    configure=_configure,
    run=_run,
    # For a parameter file in YAML.
    extra="hw",
)
