import dataclasses
import math

import numpy as np
import pytest
import sklearn.datasets
import torch

from egret.compiler import compile_network
from egret.errors import EgretError
from egret.recipes.digits import (
    OPTIONS,
    PLAIN_OPTIONS,
    DigitsMLP,
    digits_options,
    distort,
    load_digits_split,
    train_digits,
)


def test_split_is_disjoint_complete_and_stratified() -> None:
    splits = load_digits_split()
    assert [len(split.x) for split in splits] == [1077, 360, 360]
    images = np.concatenate([split.x.numpy() for split in splits]) * 16
    classes = np.concatenate([split.y.numpy() for split in splits])
    data = sklearn.datasets.load_digits()
    # Every image of the data set is there exactly as often as in the data set, so none twice.
    found = np.column_stack([images, classes])
    expected = np.column_stack([data.data, data.target])
    np.testing.assert_array_equal(
        found[np.lexsort(found.T)], expected[np.lexsort(expected.T)].astype(np.float32)
    )
    share = np.bincount(data.target) / len(data.target)
    for name, split in zip(splits._fields, splits, strict=True):
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        difference = np.abs(np.bincount(split.y.numpy(), minlength=10) - share * len(split.y))
        assert difference.max() <= 2, f"{name} is not stratified: {difference}"


def test_split_depends_on_its_seed_alone() -> None:
    first, again, other = load_digits_split(), load_digits_split(), load_digits_split(1)
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)
        assert not torch.equal(one.x, three.x)
    # Not sorted by class: a batch without shuffling would otherwise hold one digit.
    assert len(set(first.test.y[:40].tolist())) == 10


def test_network_has_the_stated_size() -> None:
    model = DigitsMLP()
    assert sum(p.numel() for p in model.parameters()) == 50_826
    assert sum(p.numel() for p in model.parameters() if p.dim() == 2) == 50_432
    assert model(torch.zeros(3, 64)).shape == (3, 10)


@pytest.mark.parametrize(("side", "strength"), [(8, 1.0), (28, 1.0), (28, 0.5)])
def test_distortions_are_affine_and_small(side: int, strength: float) -> None:
    seed = 8
    n = 300
    # Interpolation keeps a linear image linear, so two ramps show where each pixel came from.
    places = np.arange(float(side)) - (side - 1) / 2
    rows, columns = np.meshgrid(places, places, indexing="ij")
    middle = slice(side // 2 - 2, side // 2 + 2)
    inner = np.s_[middle, middle]
    sources = []
    for ramp in (columns, rows):
        x = torch.from_numpy(ramp.astype(np.float32)).reshape(1, side**2).repeat(n, 1)
        moved = distort(x, torch.Generator().manual_seed(seed), strength=strength)
        assert moved.shape == (n, side**2)
        sources.append(moved.view(n, side, side)[:, middle, middle].reshape(n, 16).numpy())
    design = np.column_stack([columns[inner].ravel(), rows[inner].ravel(), np.ones(16)])
    fits = [np.linalg.lstsq(design, source.T, rcond=None)[0] for source in sources]
    for fit, source in zip(fits, sources, strict=True):
        np.testing.assert_allclose(design @ fit, source.T, atol=1e-5, err_msg=f"seed {seed}")
    (width_cos, mixed, across), (width_sin, height_cos, down) = fits
    angle = np.arctan2(width_sin, width_cos)
    width, height = np.hypot(width_cos, width_sin), height_cos / np.cos(angle)
    shear = mixed + height * np.sin(angle)
    for name, values, most in (
        ("angle", np.degrees(angle), 12),
        ("width", np.log(width), math.log(1.1)),
        ("height", np.log(height), math.log(1.1)),
        ("shear", shear, 0.1),
        ("across", across, 0.1 * side),
        ("down", down, 0.1 * side),
    ):
        lowest, highest = -strength * most, strength * most
        margin = 0.1 * highest
        assert lowest - 1e-4 <= values.min() < lowest + margin, f"seed {seed}: {name}"
        assert highest - margin < values.max() <= highest + 1e-4, f"seed {seed}: {name}"


def test_distortions_fill_with_black() -> None:
    seed = 9
    moved = distort(torch.ones(50, 64), torch.Generator().manual_seed(seed)).view(50, 8, 8)
    # Images differ, corners leave the image, and the middle never does.
    assert moved[:, 0, 0].min() < 0.3, f"seed {seed}"
    assert moved[:, 0, 0].unique().numel() > 20, f"seed {seed}"
    torch.testing.assert_close(moved[:, 2:6, 2:6], torch.ones(50, 4, 4))


def test_distortions_need_square_images() -> None:
    with pytest.raises(EgretError, match="images: found 65 pixels each, expected a square number"):
        distort(torch.ones(2, 65), torch.Generator().manual_seed(1))


def test_settings_follow_lambda() -> None:
    assert digits_options() == OPTIONS
    assert digits_options(0.0) == PLAIN_OPTIONS
    assert digits_options(3.0) == dataclasses.replace(OPTIONS, lam=3.0)
    epochs = {o.epochs + o.final_epochs for o in (OPTIONS, PLAIN_OPTIONS)}
    assert len(epochs) == 1, "both networks train equally long"
    assert OPTIONS.batch_size == PLAIN_OPTIONS.batch_size


def test_short_training_is_deterministic_and_compresses() -> None:
    options = dataclasses.replace(OPTIONS, epochs=12, final_epochs=2)
    threads = torch.get_num_threads()
    first = train_digits(3, options=options)
    assert torch.get_num_threads() == threads
    assert first.options == dataclasses.replace(options, seed=3)
    second = train_digits(3, options=options)
    assert first.history == second.history
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    plain = train_digits(3, options=dataclasses.replace(options, lam=0.0))
    assert first.bits_per_weight < 0.6 * plain.bits_per_weight
    assert first.history[-1].nu < plain.history[-1].nu
    assert plain.validation_accuracy > 0.9
    assert first.validation_accuracy > 0.85


@pytest.mark.parametrize("lam", [0.0, OPTIONS.lam])
def test_integer_network_agrees_with_the_float_one(lam: float) -> None:
    splits = load_digits_split()
    options = dataclasses.replace(digits_options(lam), epochs=6, final_epochs=0)
    trained = train_digits(1, options=options)
    network = compile_network(trained.model, splits.train.x)
    x = network.quantize_input(splits.validation.x.numpy()).astype(np.int64)
    result = x
    for layer in network.layers:
        assert layer.bias_integer is not None
        result = x @ layer.weight.values.T.astype(np.int64) + layer.bias_integer
        scaled = (result * layer.multiplier + (1 << layer.shift >> 1)) >> layer.shift
        x = np.clip(scaled, 0, 127)
    with torch.no_grad():
        expected = trained.model(splits.validation.x).argmax(1).numpy()
    agreement = float((result.argmax(axis=1) == expected).mean())
    assert agreement > 0.95, f"seed 1, λ = {lam}"
