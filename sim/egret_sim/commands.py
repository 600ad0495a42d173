"""`egret sim` and `egret demo`."""

import argparse
import sys
from pathlib import Path

from egret.command import Command, add_params_arguments, chosen_params

__all__ = ["demo", "sim"]

_COUNT = 16


def _configure_sim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packed file of a compiled network (.egret)")
    add_params_arguments(parser)
    parser.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE.npy",
        help="inputs as float array of shape (n, features); random ones when absent",
    )
    parser.add_argument("--count", type=int, help=f"number of random inputs (default: {_COUNT})")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random inputs")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.npy",
        help="write the raw results, int32 (n, rows)",
    )


def _run_sim(arguments: argparse.Namespace) -> None:
    import numpy as np

    from egret.errors import EgretError
    from egret.files import atomic_path, check_writable
    from egret.network import IntegerNetwork
    from egret_sim.simulation import simulate

    network = IntegerNetwork.load(arguments.file)
    params = chosen_params(arguments)
    if arguments.output is not None:
        check_writable(arguments.output)
    if arguments.inputs is not None:
        if arguments.count is not None:
            raise EgretError(
                f"--count: found {arguments.count} with --inputs, whose inputs are all run"
            )
        try:
            inputs = np.load(arguments.inputs, allow_pickle=False)
        except FileNotFoundError as error:
            raise EgretError(f"{arguments.inputs}: no such file") from error
        except (OSError, ValueError, EOFError) as error:
            raise EgretError(f"{arguments.inputs}: not a .npy file: {error}") from error
        if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "fiu":
            raise EgretError(f"{arguments.inputs}: expected one array of numbers (.npy)")
    else:
        count = _COUNT if arguments.count is None else arguments.count
        for option, value, least in (
            ("--count", count, 1),
            ("--seed", arguments.seed, 0),
        ):
            if value < least:
                raise EgretError(f"{option}: found {value}, expected {least} or more")
        scale = network.layers[0].input_scale
        rng = np.random.default_rng(arguments.seed)
        inputs = rng.integers(-127, 128, (count, network.input_features)) * scale
    try:
        quantized = network.quantize_input(inputs)
    except EgretError as error:
        raise EgretError(f"{arguments.inputs or 'inputs'}: {error}") from error
    run = simulate(
        network,
        params,
        quantized,
        emit="all",
        progress=lambda done, total: print(f"  {done} of {total} inputs", file=sys.stderr),
    )
    if arguments.output is not None and run.mismatches == 0:
        with atomic_path(arguments.output) as temporary, open(temporary, "wb") as file:
            np.save(file, run.results)
    print(
        f"{run.inputs} inputs, {run.compared} values compared with the golden model, "
        f"{run.mismatches} mismatches; {run.cycles / run.inputs:.1f} cycles per input, "
        f"{100 * run.multiplies / (run.cycles * params.lanes):.1f} % of lane cycles multiplied"
    )
    if run.mismatches:
        raise EgretError(
            f"{arguments.file}: the simulated hardware differs from the golden model in "
            f"{run.mismatches} values"
        )


sim = Command(
    name="sim",
    summary="run a packed network in the simulated accelerator",
    description="""Generate the accelerator, build it with Verilator, stream a packed network and
inputs through it, and compare every layer's results with the golden model bit for bit. The
exit status tells whether all agree. Built models are kept in build/sim below the current folder, or
where EGRET_BUILD says.

examples:
  egret sim model.egret
  egret sim model.egret --preset s --inputs images.npy -o results.npy""",
    configure=_configure_sim,
    run=_run_sim,
    extra="sim",
)


def _configure_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("build/demo"), help="folder for the results"
    )
    parser.add_argument("--seed", type=int, help="seed of the training (default: the recipe's)")
    add_params_arguments(parser)


def _run_demo(arguments: argparse.Namespace) -> None:
    from egret.files import check_folder
    from egret_sim.demo import run_demo

    check_folder(arguments.output)
    run_demo(arguments.output, seed=arguments.seed, params=chosen_params(arguments))


demo = Command(
    name="demo",
    summary="the whole chain on real data: train, pack, generate, simulate, report",
    description="""Train a digit classifier to several numbers of bits, and without a rate, pack it,
generate the accelerator, run the whole test set through it in Verilator, compare every value with
the golden model, and write a report. Takes a few minutes; nothing is downloaded.

example:
  egret demo -o build/demo""",
    configure=_configure_demo,
    run=_run_demo,
    extra="sim",
)
