"""The training experiments: data, networks, methods, the cache, and what is laid out."""

import dataclasses
import gzip
import json
import math
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.experiments import __main__ as command
from benchmarks.experiments import data, lab, models, tasks, training
from benchmarks.experiments.lab import Lab, Point, knob_values
from benchmarks.experiments.measure import Measured, measure
from benchmarks.experiments.methods import METHODS, Method, Rule, code_digest, plain_code
from benchmarks.experiments.models import ARCHITECTURES
from benchmarks.experiments.report import format_study, table, target_checks, write_page
from benchmarks.experiments.results import Result, read_results, versions
from benchmarks.experiments.studies import STUDIES, fit_excess
from benchmarks.experiments.tasks import TASKS, Task
from benchmarks.experiments.training import Settings, build, fingerprint, train

from egret import ggd
from egret.errors import EgretError
from egret.rate import choose_parameters
from egret.training import Split, Splits

ROOT = Path(__file__).parent.parent

# --- data --------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny file in the place of each data set's."""
    rng = np.random.default_rng(1)
    images = tmp_path / "data" / "images"
    write_idx(images / "mnist-t10k-images.gz", rng.integers(0, 256, (40, 28, 28)))
    write_idx(images / "mnist-t10k-labels.gz", rng.integers(0, 10, 40))
    text = tmp_path / "data" / "text"
    text.mkdir()
    news = [f'"{1 + n % 4}","Title {n}","Word{n} and\\, a ""quoted"" text"' for n in range(30)]
    (text / "ag_news_test.csv").write_text("\n".join(news) + "\n")
    (text / "rt-polarity.pos").write_text("a fine film .\n" * 15)
    (text / "rt-polarity.neg").write_text("a dull film .\n" * 15)
    (text / "sms.tsv").write_text("ham\tsee you\nspam\tWIN £100\r\n" * 10, encoding="utf-8")
    (text / "tinyshakespeare.txt").write_text("To be, or not to be\n" * 100)
    return tmp_path / "data"


def test_mnist(folder: Path) -> None:
    splits = data.load_mnist(folder)
    assert [tuple(split.x.shape) for split in splits] == [(32, 784), (4, 784), (4, 784)]
    with gzip.open(folder / "images/mnist-t10k-images.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(40, 784)
    # Every image is in one split, and keeps its class.
    with gzip.open(folder / "images/mnist-t10k-labels.gz") as file:
        classes = np.frombuffer(file.read()[8:], np.uint8)
    found = {
        (tuple(torch.round(x * 255).int().tolist()), int(y))
        for split in splits
        for x, y in zip(*split, strict=True)
    }
    assert found == {(tuple(x.tolist()), int(y)) for x, y in zip(pixels, classes, strict=True)}


def test_vocabulary_knows_the_training_split_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    made = data.Vocabulary.__init__

    def watch(self: data.Vocabulary, texts: list[list[str]], size: int) -> None:
        seen.extend(texts)
        made(self, texts, size)

    monkeypatch.setattr(data.Vocabulary, "__init__", watch)
    splits = data.load_ag_news(folder)
    assert [len(split.x) for split in splits] == [24, 3, 3]
    assert len(seen) == 24
    # Words that every text has are known; a test text's own number is not.
    numbers = {int(word) for text in seen for word in text if word.isdigit()}
    left = next(n for n in range(30) if n not in numbers)
    assert not any(str(left) in text for text in seen)
    assert (splits.test.x == 1).any()
    assert not (splits.train.x == 1).any()


def test_words_and_numbers() -> None:
    assert data.words("It's £100, Ma'am…") == [
        "it",
        "'",
        "s",
        "£",
        "100",
        ",",
        "ma",
        "'",
        "am",
        "…",
    ]
    vocabulary = data.Vocabulary([["b", "a", "b"], ["c", "c", "c"]], 4)
    assert len(vocabulary) == 4
    encoded = vocabulary.encode([["b", "c", "a"], [], ["c"] * 9], 3)
    assert encoded.tolist() == [[3, 2, 1], [1, 0, 0], [2, 2, 2]]


def test_half_of_the_words_are_dropped() -> None:
    texts = torch.randint(2, 50, (200, 30), generator=torch.Generator().manual_seed(1))
    texts[:, 20:] = data.PADDING
    found = data.drop_words(texts, torch.Generator().manual_seed(2))
    assert torch.equal(found[:, 20:], texts[:, 20:])
    hidden = found[:, :20] == 1
    assert torch.equal(found[:, :20][~hidden], texts[:, :20][~hidden])
    # 4,000 words: five standard deviations are 0.04.
    assert abs(hidden.float().mean().item() - 0.5) < 0.04
    assert torch.equal(found, data.drop_words(texts, torch.Generator().manual_seed(2)))
    assert not torch.equal(found, data.drop_words(texts, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", ["reviews", "sms"])
def test_texts_keep_their_classes(folder: Path, name: str) -> None:
    splits = data.DATA[name](folder)
    ones: dict[int, set[tuple[int, ...]]] = {0: set(), 1: set()}
    for split in splits:
        for x, y in zip(*split, strict=True):
            ones[int(y)].add(tuple(x.tolist()))
    assert len(ones[0]) == len(ones[1]) == 1
    assert ones[0] != ones[1]


def test_shakespeare(folder: Path) -> None:
    splits = data.load_shakespeare(folder)
    for split in splits:
        assert torch.equal(split.x[:, 1:], split.y[:, :-1])
    stride = splits.train.x[1, 0 : data.CONTEXT // 2]
    assert torch.equal(stride, splits.train.x[0, data.CONTEXT // 2 :])


def damage(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / path).write_bytes(change((folder / path).read_bytes()))

    return apply


def repack(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda packed: gzip.compress(change(gzip.decompress(packed)))


DAMAGES: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("mnist", "images/mnist-t10k-images.gz", lambda b: b[:-9], "no whole gzip"),
    ("mnist", "images/mnist-t10k-images.gz", lambda b: b"no gzip", "no whole gzip"),
    ("mnist", "images/mnist-t10k-images.gz", repack(lambda b: b[:10]), "found 10 bytes"),
    ("mnist", "images/mnist-t10k-images.gz", repack(lambda b: b[:-1]), "found 31359 bytes"),
    ("mnist", "images/mnist-t10k-labels.gz", repack(lambda b: b"\1" + b[1:]), "0x1000801"),
    ("mnist", "images/mnist-t10k-labels.gz", repack(lambda b: b[:8] + b"\12" * 40), "class 10"),
    (
        "mnist",
        "images/mnist-t10k-labels.gz",
        repack(lambda b: struct.pack(">2I", 0x801, 3) + bytes(3)),
        "found 3 classes, expected 40",
    ),
    ("ag_news", "text/ag_news_test.csv", lambda b: b'"5","a","b"\n' + b, "row 1: found 3 columns"),
    ("ag_news", "text/ag_news_test.csv", lambda b: b + b'"1","a"\n', "row 31: found 2 columns"),
    ("ag_news", "text/ag_news_test.csv", lambda b: b"", "found 0 samples"),
    ("reviews", "text/rt-polarity.neg", lambda b: b"\n", "found no line"),
    ("reviews", "text/rt-polarity.pos", lambda b: b + b"\xff", "found byte 0xff"),
    ("sms", "text/sms.tsv", lambda b: b + b"egg\tx\n", "line 21: found 'egg"),
    ("shakespeare", "text/tinyshakespeare.txt", lambda b: b[:500], "found 500 characters"),
    (
        "shakespeare",
        "text/tinyshakespeare.txt",
        lambda b: b + bytes(range(32, 127)),
        "distinct characters, expected at most 65",
    ),
]


@pytest.mark.parametrize(("name", "path", "change", "message"), DAMAGES)
def test_damaged_data(
    folder: Path, name: str, path: str, change: Callable[[bytes], bytes], message: str
) -> None:
    damage(path, change)(folder)
    with pytest.raises(EgretError) as caught:
        data.DATA[name](folder)
    assert str(folder) in str(caught.value)
    assert message in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in data.DATA if name != "digits"])
def test_missing_data(tmp_path: Path, name: str) -> None:
    with pytest.raises(EgretError, match=r"expected --data FOLDER"):
        data.DATA[name](None)
    with pytest.raises(EgretError, match=r"cannot read this file"):
        data.DATA[name](tmp_path)


# --- networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.make()
    assert sum(parameter.numel() for parameter in model.parameters()) == architecture.parameters
    charged = choose_parameters(model, None, ())
    assert sum(parameter.numel() for parameter in charged.values()) == architecture.weights


@pytest.mark.parametrize("name", TASKS)
def test_page_shows_the_sizes(name: str) -> None:
    architecture = TASKS[name].architecture
    row = next(
        line
        for line in (ROOT / "docs/experiments.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{name}` |")
    )
    cells = row.split("|")
    assert cells[-3:-1] == [f" {architecture.parameters:,} ", f" {architecture.weights:,} "]


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    torch.manual_seed(3)
    model = ARCHITECTURES["sms-transformer"].make().eval()
    texts = torch.zeros(2, 40, dtype=torch.int64)
    texts[0, :3] = torch.tensor([5, 6, 7])
    texts[1, :9] = torch.arange(9) + 2
    assert torch.allclose(model(texts)[:1], model(texts[:1]), atol=1e-6)


@torch.no_grad()
def test_characters_do_not_see_what_follows() -> None:
    torch.manual_seed(3)
    model = ARCHITECTURES["character-gpt"].make().eval()
    x = torch.randint(65, (1, 20))
    other = x.clone()
    other[0, 12] = (x[0, 12] + 1) % 65
    differs = (model(x) - model(other)).abs().amax(-1)[0]
    assert (differs[:12] < 1e-6).all()
    assert differs[12] > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["character-gpt", "sms-transformer"])
def test_mixed_precision_is_for_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    model = ARCHITECTURES[name].make().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.randint(1, 65, (4, 20))
    exact = model(x)
    monkeypatch.setattr(models, "_MIXED", True)
    assert torch.equal(model(x), exact)
    mixed = model.train()(x)
    assert mixed.dtype == torch.float32
    error = (mixed - exact).abs().max().item()
    assert 0 < error < 0.02 * exact.abs().max().item() + 0.01
    monkeypatch.setattr(models, "_MIXED", False)
    assert torch.equal(model(x), exact)


# --- trainings ---------------------------------------------------------------------------------

TINY = Settings(
    task="digits",
    method="plain",
    seed=1,
    epochs=2,
    batch_size=64,
    learning_rate=4e-3,
    weight_decay=0.0,
    samples=192,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


def trained(method: str, value: float | None, cache: Path, epochs: int = 2) -> training.Trained:
    settings = dataclasses.replace(TINY, method=method, value=value, epochs=epochs)
    return train(settings, None, cache)[0]


def test_trained_once(tmp_path: Path) -> None:
    first, is_new = train(TINY, None, tmp_path)
    assert is_new
    again, is_new = train(TINY, None, tmp_path)
    assert not is_new
    assert again.history == first.history
    assert again.settings == first.settings
    assert all(torch.equal(again.state[name], first.state[name]) for name in first.state)
    assert [record.epoch for record in first.history] == [1, 2]
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    anew, is_new = train(TINY, None, tmp_path)
    assert is_new
    assert all(torch.equal(anew.state[name], first.state[name]) for name in first.state)


def test_fingerprint_tells_trainings_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(TINY, None)
    changes: list[dict[str, Any]] = [{"seed": 2}, {"value": 1.0}, {"samples": 9}, {"method": "l1"}]
    others = {fingerprint(dataclasses.replace(TINY, **change), None) for change in changes}
    assert len(others | {first}) == 1 + len(changes)
    monkeypatch.setitem(tasks.TASKS, "digits", dataclasses.replace(TASKS["digits"], augment=None))
    assert fingerprint(TINY, None) != first


def test_long_trainings_alone_are_augmented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def watch(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(len(x))
        return 0.5 * x

    task = dataclasses.replace(TASKS["digits"], augment=watch, augment_from=2)
    monkeypatch.setitem(tasks.TASKS, "digits", task)
    short, long = (dataclasses.replace(TINY, epochs=epochs) for epochs in (1, 2))
    names = [fingerprint(settings, None) for settings in (short, long)]
    assert seen == [8]
    seen.clear()
    train(short, None, tmp_path)
    assert not seen
    train(long, None, tmp_path)
    assert seen == 2 * [64, 64, 64]
    # What is not augmented is known by the same name as without any augmentation.
    task = dataclasses.replace(task, augment=None)
    monkeypatch.setitem(tasks.TASKS, "digits", task)
    again = [fingerprint(settings, None) for settings in (short, long)]
    assert again[0] == names[0]
    assert again[1] != names[1]


def test_code_digest_leaves_comments_out() -> None:
    assert plain_code('"""A."""\nx = 1  # one\n') == plain_code('"""B."""\n\nx = (1)\n')
    assert plain_code("x = 1") != plain_code("x = 2")
    digests = {code_digest(method) for method in METHODS.values()}
    assert len(digests) == len({method.trained_as for method in METHODS.values()})


def test_methods_do_what_they_say(cache: Path) -> None:
    plain = trained("plain", None, cache)
    size = {}
    for method, value in (("l1", 40.0), ("l2", 40.0), ("l0.5", 40.0), ("backslash", 40.0)):
        state = trained(method, value, cache, 4).state
        size[method] = sum(float(state[name].abs().sum()) for name in plain.weight_names)
    before = sum(float(plain.state[name].abs().sum()) for name in plain.weight_names)
    assert max(size.values()) < 0.97 * before
    assert len({round(each) for each in size.values()}) == 4

    pruned = trained("prune", 0.9, cache).state
    zeros = sum(int((pruned[name] == 0).sum()) for name in plain.weight_names)
    assert zeros == round(0.9 * 50_432)

    for method in ("proximal", "egret"):
        ours = trained(method, 2.0, cache, 12)
        assert ours.history[-1].bits == pytest.approx(2.0, rel=0.15)
        assert ours.history[-1].lam > 0
    rounded = trained("qat", 4.0, cache)
    for network, steps in ((rounded, dict.fromkeys(plain.weight_names, 4)), (ours, ours.steps)):
        assert network.steps == steps
        for name, step in steps.items():
            integers = network.state[name] * 2**step
            assert torch.equal(integers, torch.round(integers))


def test_last_steps_go_without_the_rate() -> None:
    model = ARCHITECTURES["digits-mlp"].make()
    rule = METHODS["l1"].start(model, 1.0, 20)
    charged = [rule.loss() is not None for _ in range(20)]
    assert charged == [True] * 18 + [False] * 2


def test_a_method_may_round_in_the_forward_pass(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    class Rounds(Rule):
        def forward(self) -> AbstractContextManager[None]:
            @contextmanager
            def block() -> Iterator[None]:
                entered.append(1)
                yield
                entered.append(-1)

            return block()

        def steps(self) -> dict[str, int]:
            return {"hidden1.weight": 3}

        def finish(self) -> None:
            entered.append(0)

    monkeypatch.setitem(METHODS, "rounds", Method("rounds", "step", "rounds", Rounds))
    monkeypatch.setattr("benchmarks.experiments.training.code_digest", lambda method: "rounds")
    laboratory = Lab(None, cache, seeds=(0,), quick=True, say=lambda line: None)
    found = laboratory.point(TASKS["digits"], "rounds", 5.0)
    assert (found.value, found.step_log2) == (5.0, 5)
    # Four steps and an evaluation in each epoch.
    assert entered == [*[1, -1] * 9, 0, 1, -1]
    # The first layer in steps of 2^-3, the others in steps of 2^-5.
    state = laboratory.trained(laboratory.settings(TASKS["digits"], "rounds", 0, 5.0)).state
    names = [name for name in state if name.endswith("weight")]
    zeros = sum(
        int((torch.round(state[name] * (8 if name == "hidden1.weight" else 32)) == 0).sum())
        for name in names
    )
    assert found.measured[0].zeros == pytest.approx(100 * zeros / 50_432, abs=1e-9)


# --- measuring ---------------------------------------------------------------------------------


def test_unpacked_network_is_measured(cache: Path) -> None:
    found = trained("plain", None, cache)
    task = TASKS["digits"]
    splits = data.load("digits", None)
    model = build(task, found)
    coarse = measure(task, model, found.weight_names, splits, seed=7, step_log2=3)
    weights = torch.cat([found.state[name].flatten() for name in found.weight_names])
    rounded = torch.round(weights * 8)
    now = torch.cat([model.state_dict()[name].flatten() for name in found.weight_names])
    assert torch.equal(now, rounded / 8)
    assert coarse.zeros == pytest.approx(100 * float((rounded == 0).float().mean()), abs=1e-4)
    entropy = 0.0
    for name in found.weight_names:
        _, counts = torch.unique(torch.round(found.state[name] * 8), return_counts=True)
        entropy += float((counts * torch.log2(counts.sum() / counts)).sum())
    assert coarse.entropy == pytest.approx(entropy / 50_432, rel=1e-5)
    assert coarse.entropy <= coarse.huffman <= min(coarse.golomb)
    assert coarse.entropy < coarse.payload < 1.1 * coarse.entropy + 0.05
    assert 8 * coarse.file_bytes > coarse.payload * 50_432
    assert coarse.seed == 7
    with torch.no_grad():
        right = (model(splits.test.x).argmax(1) == splits.test.y).float().mean()
    assert coarse.test == pytest.approx(100 * float(right), abs=1e-4)


def test_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    task = TASKS["gpt"]
    model = task.architecture.make()
    names = tuple(choose_parameters(model, None, ()))
    windows = Split(torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64))
    splits = Splits(windows, windows, windows)
    found = measure(task, model, names, splits, seed=0, step_log2=8)
    logits = model(windows.x)[0].log_softmax(-1)[:, 1]
    assert found.test == pytest.approx(-float(logits.mean().detach()), rel=1e-5)
    assert found.entropy < found.payload < 1.05 * found.entropy


def test_fit_excess() -> None:
    """A sample fits the distribution that it is drawn from, and no other."""
    rng = np.random.default_rng(5)
    for shape in (0.7, 1.0, 2.0):
        weights = ggd.sample(200_000, shape, 0.05, rng)
        assert 0 <= fit_excess(weights, shape, 0.05) < 0.002
        assert fit_excess(weights, shape + 0.6, 0.05) > 0.01
    # Against the integral of the density over each step.
    weights = ggd.sample(1000, 1.0, 0.02, rng)
    values, counts = np.unique(np.rint(weights * 256), return_counts=True)
    fine = (np.arange(1000) + 0.5) / 1000 - 0.5
    expected = [ggd.density((value + fine) / 256, 1.3, 0.02).mean() / 256 for value in values]
    found = counts / 1000
    by_hand = float((found * np.log2(found / np.array(expected))).sum())
    assert fit_excess(weights, 1.3, 0.02) == pytest.approx(by_hand, abs=1e-5)


# --- choices -----------------------------------------------------------------------------------


def point(method: str, value: float | None, validation: float) -> Point:
    measured = Measured(0, 1.0, 1, 1.0, 1.0, 1.0, (1.0,) * 4, 0.0, validation, 0.0)
    return Point(method, value, 8, 0.0, (measured,))


@pytest.mark.parametrize(
    ("qualities", "place"),
    [
        ([98.0, 97.9, 97.8, 97.6, 90.0], 2),
        ([97.6, 97.65, 97.0, 97.0, 97.0], 1),
        ([97.0, 97.0, 97.0, 97.0, 97.75], 4),
    ],
)
def test_lambda_is_the_largest_that_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qualities: list[float], place: int
) -> None:
    values = knob_values(TASKS["digits"], "l1")
    assert list(values) == sorted(values)
    monkeypatch.setattr(Lab, "point", lambda self, task, method: point(method, None, 98.0))
    monkeypatch.setattr(
        Lab,
        "curve",
        lambda self, task, method: [
            point(method, value, quality) for value, quality in zip(values, qualities, strict=True)
        ],
    )
    assert Lab(None, tmp_path).chosen(TASKS["digits"], "l1") == values[place]


def test_tuning_takes_the_best_on_validation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = dataclasses.replace(TASKS["digits"], epochs=(1, 2), learning_rates=(1e-6, 4e-3))
    monkeypatch.setattr(lab, "TUNING_SEEDS", (20,))
    monkeypatch.setattr(lab, "QUICK_SAMPLES", None)
    laboratory = Lab(None, tmp_path, seeds=(0,), say=lambda line: None)
    assert laboratory.tuned(task, "plain") == (2, 4e-3)
    # The plain network's epochs hold for the others.
    assert {found[0] for found in laboratory.tuning(task, "l1")} == {2}
    assert {settings.seed for settings in laboratory.used} == {20}


def test_targets_choose_from_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = dataclasses.replace(
        TASKS["digits"],
        epochs=(1,),
        learning_rates=(1e-6, 1e-3),
        target_epochs=(1, 2),
        more_rates=(4e-3,),
    )
    monkeypatch.setattr(lab, "TUNING_SEEDS", (20,))
    monkeypatch.setattr(lab, "FINAL_SEEDS", (20, 21))
    monkeypatch.setattr(lab, "FINALISTS", 2)
    monkeypatch.setattr(lab, "QUICK_SAMPLES", None)
    laboratory = Lab(None, tmp_path, seeds=(0,), say=lambda line: None)
    free = laboratory.freed()
    for method in ("plain", "l1"):
        assert [found[:2] for found in laboratory.tuning(task, method)] == [(1, 1e-6), (1, 1e-3)]
        tried = [found[:2] for found in free.tuning(task, method)]
        assert tried == [(1, 1e-6), (1, 1e-3), (1, 4e-3), (2, 1e-6), (2, 1e-3), (2, 4e-3)]
        # The best two, of which more seeds decide, have the largest step size.
        assert free.tuned(task, method)[1] == 4e-3
    again = [(used.epochs, used.learning_rate) for used in free.used if used.seed == 21]
    assert len(again) == 4
    assert set(again) == {(1, 4e-3), (2, 4e-3)}
    # The curves' middle target, and the middle of those that are tried for the limit of 0.6 bits.
    laboratory.used.clear()
    free.used.clear()
    short = dataclasses.replace(task, target_epochs=(1,), more_rates=())
    for each in (laboratory, free):
        each.tuning(short, "egret")
    assert {used.value for used in laboratory.used} == {0.9}
    assert {used.value for used in free.used} == {0.675}
    one = dataclasses.replace(task, learning_rates=(1e-3,), target_epochs=(2,), more_rates=())
    free = laboratory.freed()
    assert free.tuned(one, "l1") == (2, 1e-3)
    assert not free.used


@pytest.mark.parametrize(
    ("excess", "aim"),
    [
        (-0.19, 1.3),
        (-0.175, 1.275),
        (-0.16, 1.25),
        (-0.145, 1.225),
        (-0.13, 1.2),
        (-0.115, 1.175),
        (-0.1, 1.15),
        (-0.085, 1.125),
        (-0.07, 1.1),
        (-0.055, 1.075),
        (-0.04, 1.05),
        (-0.025, 1.025),
        (-0.007, 1.0),
        (0.01, 0.95),
        (0.05, 0.9),
        (0.9, 0.9),
    ],
)
def test_target_is_the_largest_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, excess: float, aim: float
) -> None:
    def reach(self: Lab, task: Task, method: str, target: float) -> Point:
        found = point(method, target, 98.0)
        measured = dataclasses.replace(found.measured[0], payload=target + excess)
        return dataclasses.replace(found, measured=(measured,))

    monkeypatch.setattr(Lab, "point", reach)
    task = TASKS["digits"]
    assert task.most_bits == 0.6
    assert Lab(None, tmp_path).chosen_target(task, "egret") == pytest.approx(0.6 * aim)


# --- results -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the results of a quick run of everything on the digits."""
    folder = tmp_path_factory.mktemp("results")
    options = ["--quick", "--cache", str(cache), "--results", str(folder)]
    assert command.main(["all", *options]) == 0
    return folder


def test_every_experiment_runs(quick: Path) -> None:
    found = read_results(quick)
    assert list(found) == list(STUDIES)
    for name, [result] in found.items():
        assert result.quick
        assert result.versions == versions()
        header, rows = table(name, [result])
        assert all(len(row) == len(header) for row in rows)
        assert bool(rows) == (name != "tuning")
        for settings in result.settings:
            assert {"seed", "learning_rate", "epochs", "fingerprint"} <= set(settings)
        assert "QUICK RUN" in format_study(name, [result])
    drawn = {path.stem.removeprefix("experiments-") for path in quick.glob("*.svg")}
    assert drawn == {*("steps", "pruning", "fits", "course", "lambdas", "histograms", "curves")}


def test_results_do_not_depend_on_the_cache(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--cache", str(tmp_path / "t"), "--results", str(tmp_path / "r")]
    assert command.main(["codes", *options]) == 0
    first, again = (
        json.loads((folder / "codes-digits.json").read_text()) for folder in (quick, tmp_path / "r")
    )
    assert again.pop("seconds") >= 0
    first.pop("seconds")
    assert again == first


def test_quick_results_stay_out_of_the_page(quick: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- codes -->\n<!-- end -->\n")
    with pytest.raises(EgretError, match="quick run"):
        write_page(read_results(quick), page)
    assert page.read_text() == "<!-- codes -->\n<!-- end -->\n"


def test_page(quick: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    whole = {
        name: [dataclasses.replace(result, quick=False) for result in found]
        for name, found in read_results(quick).items()
    }
    page.write_text("A\n<!-- codes -->\nold\n<!-- end -->\nB\n<!-- steps -->\n<!-- end -->\nC\n")
    assert write_page(whole, page) == ["codes", "steps"]
    text = page.read_text()
    assert "old" not in text
    assert [line for line in text.splitlines() if line in ("A", "B", "C")] == ["A", "B", "C"]
    assert text.count("| digits, MLP |") == 4
    assert "![" in text.split("B\n")[1]
    # Writing it again changes nothing.
    write_page(whole, page)
    assert page.read_text() == text


def test_differences_are_paired() -> None:
    def measured(seed: int, test: float, payload: float) -> dict[str, object]:
        return dataclasses.asdict(
            Measured(seed, payload, 9, 1.0, 1.0, 1.0, (1.5,) * 4, 0.0, 0.0, test)
        )

    plain = {"method": "plain", "value": None, "step_log2": 8}
    ours = {"method": "proximal", "value": 0.5, "step_log2": 8}
    result = Result(
        experiment="targets",
        task="digits",
        quick=False,
        seeds=[0, 1],
        network={"parameters": 1, "weights": 1},
        data={"samples": {"train": 1, "validation": 1, "test": 1}},
        settings=[],
        versions={"torch": "x"},
        threads=1,
        seconds=0.0,
        figures={
            "points": [
                # The order of the seeds does not matter.
                {**plain, "measured": [measured(1, 90.0, 8), measured(0, 80.0, 8)]},
                {**ours, "measured": [measured(0, 79.9, 0.4), measured(1, 89.5, 0.6)]},
            ],
            "most_bits": 0.5,
            "most_golomb_bits": 1.4,
            "tolerance": 0.3,
        },
    )
    checks = {check.limit: check for check in target_checks(result)}
    assert checks["payload bits"].found == pytest.approx(0.5)
    assert checks["worse by"].found == pytest.approx(0.3)
    assert [check.passed for check in checks.values()] == [True, True, False]
    row = table("targets", [result])[1][1]
    assert row[-1] == f"-0.30 ± {math.sqrt(2 * 0.2**2):.2f}"
    assert row[3] == f"0.500 ± {math.sqrt(2 * 0.1**2):.3f}"


def test_kept_results_are_those_of_the_page() -> None:
    """The page's tables are what the results in docs/results/experiments give."""
    kept = read_results(ROOT / "docs" / "results" / "experiments")
    page = ROOT / "docs" / "experiments.md"
    text = page.read_text(encoding="utf-8")
    for name in STUDIES:
        assert f"<!-- {name} -->" in text
        section = text.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        expected = [f"| {' | '.join(row)} |" for row in table(name, kept.get(name, []))[1]]
        # Behind the titles and the line below them.
        assert rows[2:] == expected


def test_damaged_result(tmp_path: Path) -> None:
    (tmp_path / "codes-digits.json").write_text('{"task": "digits"}')
    with pytest.raises(EgretError, match=r"codes-digits\.json: found no result"):
        read_results(tmp_path)


# --- the command -------------------------------------------------------------------------------


def test_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cache", str(tmp_path), "--results", str(tmp_path), "--quick"]
    assert command.main(["codes", "--tasks", "lenet", "--data", str(tmp_path), *options]) == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("benchmarks.experiments: ")
    assert "mnist-t10k-images.gz" in printed


@pytest.mark.parametrize(
    "options", [["nonsense"], ["codes", "--seeds", "1", "1"], ["codes", "--jobs", "0"]]
)
def test_command_refuses(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(options)
    assert caught.value.code == 2


def test_trainings_in_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # One process is enough to see that what a training needs gets there and back.
    monkeypatch.setattr(
        lab,
        "ProcessPoolExecutor",
        lambda jobs, mp_context: ProcessPoolExecutor(1, mp_context=mp_context),
    )
    alone = Lab(None, tmp_path / "a", seeds=(0, 1), quick=True, say=lambda line: None)
    several = Lab(None, tmp_path / "b", seeds=(0, 1), quick=True, jobs=2, say=lambda line: None)
    task = TASKS["digits"]
    assert alone.point(task, "plain") == several.point(task, "plain")
    assert len(list((tmp_path / "b").iterdir())) == 2
