"""`egret train`: train a network whose weights compress."""

import argparse
import dataclasses
import sys
from pathlib import Path

from egret.command import Command
from egret.errors import EgretError

__all__ = ["command"]

_DEFAULT_TARGET_BITS = 1.0

_DESCRIPTION = """\
Train a classifier with the rate term: beside its usual loss the network pays for the
bits its weights will take, so that most of them become exactly zero.

Train the shipped example, handwritten digits (about half a minute, nothing is downloaded):

    egret train digits -o build/digits

Train your own network on your own data:

    egret train --model mymodule:make_model --data mymodule:make_data --target-bits 1 -o build/mine

  make_model()  returns a torch.nn.Module
  make_data()   returns (train, validation, test), each a pair (x, y) of tensors or a
                TensorDataset; y holds class numbers

Written to the output folder:

  model.safetensors  the float weights
  weights.egret      the weights quantised and packed, as `egret pack` writes them
  model.egret        the whole network in integers, ready for `egret image`
                     (only for a chain of Linear, ReLU, BatchNorm1d, Flatten and Dropout)
  training.json      settings, accuracies and the history of every epoch

--target-bits says how many bits a weight may take at the end; a controller finds the strength of
the rate term that this needs, and the network learns with its weights rounded, in steps that are
chosen for each tensor.

--lam, in its place, weighs the rate against the loss. 0 trains an ordinary network. Raise it until
the validation accuracy starts to fall.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", choices=["digits"], help="shipped recipe; leave out with --model"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--model", metavar="MODULE:FACTORY", help="function that makes your model")
    parser.add_argument("--data", metavar="MODULE:FACTORY", help="function that loads your data")
    parser.add_argument(
        "--seed", type=int, help="seed of everything random (the recipe's; 0 for your own model)"
    )
    parser.add_argument(
        "--lam", type=float, help="weight of the rate term in the loss, in place of --target-bits"
    )
    parser.add_argument(
        "--target-bits",
        type=float,
        metavar="BITS",
        help="bits per weight (entropy) to come to (the recipe's; 1 for your own model)",
    )
    parser.add_argument(
        "--epochs", type=int, help="passes over the training data (the recipe's; 60 for your own)"
    )
    parser.add_argument(
        "--final-epochs", type=int, help="further passes without the rate term (the recipe's; 0)"
    )
    parser.add_argument("--batch-size", type=int, help="samples per step (64)")
    parser.add_argument("--learning-rate", type=float, help="Adam's first step size (0.002)")
    parser.add_argument(
        "--step-log2",
        type=int,
        metavar="N",
        help="keep the weights in steps of 2^-N (each tensor's own; with --lam, 8)",
    )
    parser.add_argument(
        "--rdo",
        type=float,
        metavar="LAMBDA",
        help="round for the bits too at the end, not with --lam; as of `egret pack` (0)",
    )


def _run(arguments: argparse.Namespace) -> None:
    if (arguments.model is None) != (arguments.data is None):
        raise EgretError("--model and --data belong together: give both or neither")
    if (arguments.recipe is None) == (arguments.model is None):
        raise EgretError("name either a recipe (digits) or --model and --data")
    from egret.files import check_folder
    from egret.quantize import check_step
    from egret.rate import entropy_per_weight
    from egret.recipes import digits
    from egret.training import (
        TrainingOptions,
        accuracy,
        load_data,
        load_model,
        print_progress,
        save_training,
        train,
    )

    if arguments.step_log2 is not None:
        check_step(arguments.step_log2, "--step-log2")
    check_folder(arguments.output)
    chosen = {
        name: value
        for name in (
            "lam",
            "epochs",
            "final_epochs",
            "batch_size",
            "learning_rate",
            "seed",
            "target_bits",
            "rdo",
        )
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.lam is None:
        chosen["step_log2"] = arguments.step_log2
        if arguments.final_epochs:
            raise EgretError("--final-epochs: they go without the rate in the loss: give --lam too")
    elif arguments.target_bits is not None:
        raise EgretError("--target-bits and --lam: give one of them")
    elif arguments.rdo is not None:
        raise EgretError("--rdo: found with --lam, whose training does not round")
    if arguments.recipe is not None:
        chosen.setdefault("seed", digits.DEFAULT_SEED)
        recipe = (
            digits.TARGET_OPTIONS if arguments.lam is None else digits.digits_options(arguments.lam)
        )
        options = dataclasses.replace(recipe, **chosen)
        splits = digits.load_digits_split()
    else:
        default = {} if arguments.lam is not None else {"target_bits": _DEFAULT_TARGET_BITS}
        options = TrainingOptions(**default | chosen)
        splits = load_data(arguments.data)
    print(
        f"Training on {len(splits.train.x)} samples, validating on {len(splits.validation.x)}, "
        f"{options.epochs + options.final_epochs} epochs, "
        + (
            f"λ = {options.lam:g}"
            if options.target_bits is None
            else f"to {options.target_bits:g} bits per weight"
        ),
        file=sys.stderr,
    )
    if arguments.recipe is not None:
        trained = digits.train_digits(options.seed, options=options, progress=print_progress)
    else:
        trained = train(load_model(arguments.model), splits, options, progress=print_progress)
    saved = save_training(trained, splits, arguments.output, step_log2=arguments.step_log2)
    packed = saved.packed
    print(
        f"{trained.weights} weights, {trained.bits_per_weight:.2f} code bits per weight, "
        f"test accuracy {100 * accuracy(trained.model, splits.test):.2f} %"
    )
    if options.target_bits is not None:
        weights = [trained.model.get_parameter(name) for name in trained.weight_names]
        steps = trained.step_log2 or {}
        reached = entropy_per_weight(weights, [steps[name] for name in trained.weight_names])
        print(
            f"Asked for {options.target_bits:g} bits of entropy per weight, reached {reached:.3f}"
        )
    print(
        f"weights.egret: {packed.payload_bits:.3f} bits per weight with codes and maps, "
        f"{packed.file_bytes:,} bytes; unpacked, test accuracy "
        f"{100 * packed.accuracy['test']:.2f} %"
    )
    print(f"Wrote {arguments.output}")
    if saved.reason is not None:
        print(f"No model.egret: {saved.reason}", file=sys.stderr)


command = Command(
    name="train",
    summary="train a network whose weights compress",
    description=_DESCRIPTION,
    configure=_configure,
    run=_run,
    extra="train",
)
