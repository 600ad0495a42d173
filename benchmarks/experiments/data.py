"""The data sets of the experiments, read from a folder that the user names, and their splits.

Digits ship with scikit-learn. Of the others there is one file, or one for each class, so that all
are split here, by one seed: four fifths for training, a tenth each for validation and test.
"""

import csv
import gzip
import hashlib
import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from egret.errors import EgretError
from egret.recipes.digits import load_digits_split
from egret.training import Split, Splits

__all__ = ["DATA", "PADDING", "SPLIT_SEED", "Vocabulary", "digest", "drop_words", "load", "words"]

SPLIT_SEED = 0
"""Seed of every split."""
PADDING = 0
"""Number that fills texts up to the common length."""
_UNKNOWN = 1
# Share of the words that `drop_words` hides.
_DROPPED = 0.5
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
# The first word of an IDX file: unsigned bytes, and the number of axes.
_IDX_MAGIC = 0x0800
_AG_NEWS_CLASSES = ("1", "2", "3", "4")
_SMS_CLASSES = ("ham", "spam")

CONTEXT = 128
"""Characters that the language model sees at once."""
NEWS_WORDS, REVIEW_WORDS, SMS_WORDS = 64, 48, 40
"""Words of a text that are used; the rest is cut off."""
NEWS_VOCABULARY, REVIEW_VOCABULARY, SMS_VOCABULARY = 8000, 8000, 4000
"""Numbers that a word can have, padding and unknown among them."""
CHARACTERS = 65
"""Distinct characters of the language model's text."""


def _read(folder: Path | None, name: str) -> bytes:
    if folder is None:
        raise EgretError(f"{name}: no folder is given, expected --data FOLDER with this file in it")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise EgretError(
            f"{folder / name}: cannot read this file: {error.strerror}; expected it in the folder "
            "of --data, see docs/experiments.md"
        ) from error


def _text(folder: Path | None, name: str) -> str:
    data = _read(folder, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EgretError(
            f"{folder}/{name}: found byte {data[error.start]:#04x} at {error.start}, expected text "
            "in UTF-8"
        ) from error


def _lines(text: str) -> list[str]:
    # Not splitlines, which also breaks at characters within a line.
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _parts(count: int, where: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Deal positions out to training, validation and test."""
    held = count // 10
    if held == 0:
        raise EgretError(f"{where}: found {count} samples, expected 10 or more to split")
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(count))
    return order[2 * held :], order[held : 2 * held], order[:held]


def _split(x: torch.Tensor, y: torch.Tensor, where: str) -> Splits:
    return Splits(*(Split(x[part], y[part]) for part in _parts(len(x), where)))


# --- images ------------------------------------------------------------------------------------


def _idx(folder: Path | None, name: str, axes: int) -> np.ndarray:
    """Read a packed IDX file of bytes with so many axes."""
    packed = _read(folder, name)
    where = f"{folder}/{name}"
    try:
        data = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise EgretError(f"{where}: found no whole gzip file ({error}), expected one") from error
    header = 4 * (1 + axes)
    if len(data) < header:
        raise EgretError(f"{where}: found {len(data)} bytes, expected {header} or more")
    magic, *shape = struct.unpack(f">{1 + axes}I", data[:header])
    if magic != _IDX_MAGIC + axes:
        raise EgretError(
            f"{where}: found first word {magic:#x}, expected {_IDX_MAGIC + axes:#x} (IDX, bytes, "
            f"{axes} axes)"
        )
    expected = int(np.prod(shape, dtype=np.int64))
    if len(data) - header != expected:
        raise EgretError(
            f"{where}: found {len(data) - header} bytes of data, expected {expected} for shape "
            f"{tuple(shape)}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def load_mnist(folder: Path | None) -> Splits:
    """Return MNIST's 10,000 test images as three splits, flat, pixels 0 to 1.

    The files are the data set's own: `images/mnist-t10k-images.gz` and `-labels.gz`.
    """
    images = _idx(folder, "images/mnist-t10k-images.gz", 3)
    labels = _idx(folder, "images/mnist-t10k-labels.gz", 1)
    where = f"{folder}/images/mnist-t10k-labels.gz"
    if images.shape[1:] != (28, 28):
        raise EgretError(
            f"{folder}/images/mnist-t10k-images.gz: found images of {images.shape[1:]} pixels, "
            "expected 28 × 28"
        )
    if len(labels) != len(images):
        raise EgretError(f"{where}: found {len(labels)} classes, expected {len(images)}")
    if labels.max(initial=0) > 9:
        raise EgretError(f"{where}: found class {labels.max()}, expected 0 to 9")
    x = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)
    return _split(x, torch.from_numpy(labels.astype(np.int64)), where)


# --- texts -------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Cut a text into words, numbers and single signs, all in small letters."""
    return _WORD.findall(text.lower())


class Vocabulary:
    """The most frequent words of the training texts, by number.

    Parameters
    ----------
    texts : sequence of list of str
        Words of each training text.
    size : int
        Numbers in all: 0 is padding, 1 stands for every other word. Of equally frequent words the
        first in the alphabet is kept.
    """

    def __init__(self, texts: Sequence[list[str]], size: int) -> None:
        counts = Counter(word for text in texts for word in text)
        kept = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
        self._numbers = {word: number for number, word in enumerate(kept, 2)}

    def __len__(self) -> int:
        return len(self._numbers) + 2

    def encode(self, texts: Sequence[list[str]], length: int) -> torch.Tensor:
        """Return the numbers of the first words of each text, int64, shape (texts, length).

        A text without words is one unknown word.
        """
        encoded = torch.full((len(texts), length), PADDING, dtype=torch.int64)
        for row, text in enumerate(texts):
            numbers = [self._numbers.get(word, _UNKNOWN) for word in text[:length]] or [_UNKNOWN]
            encoded[row, : len(numbers)] = torch.tensor(numbers)
        return encoded


def drop_words(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Hide half of the words, each by chance (word dropout): they become the unknown word.

    Parameters
    ----------
    x : torch.Tensor of int64, shape (n, length)
        Texts, encoded by `Vocabulary.encode`.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    torch.Tensor of int64, shape (n, length)
        The texts with what is left of them; they are as long as before.

    Notes
    -----
    Source: arXiv 1511.06349, word dropout, there of a decoder's inputs.
    """
    hidden = torch.rand(x.shape, generator=generator) < _DROPPED
    return x.masked_fill(hidden & (x != PADDING), _UNKNOWN)


def _classified(
    texts: Sequence[str], classes: Sequence[int], size: int, length: int, where: str
) -> Splits:
    """Split texts, and number their words by those of the training split."""
    cut = [words(text) for text in texts]
    y = torch.tensor(classes, dtype=torch.int64)
    parts = _parts(len(cut), where)
    vocabulary = Vocabulary([cut[i] for i in parts[0].tolist()], size)
    return Splits(
        *(
            Split(vocabulary.encode([cut[i] for i in part.tolist()], length), y[part])
            for part in parts
        )
    )


def load_ag_news(folder: Path | None) -> Splits:
    """Return AG-News' 7,600 test items as three splits; four topics (`text/ag_news_test.csv`)."""
    name = "text/ag_news_test.csv"
    texts, classes = [], []
    try:
        for number, row in enumerate(csv.reader(io.StringIO(_text(folder, name))), 1):
            if len(row) != 3 or row[0] not in _AG_NEWS_CLASSES:
                raise EgretError(
                    f"{folder}/{name}: row {number}: found {len(row)} columns beginning with "
                    f"{row[0] if row else ''!r}, expected class 1 to 4, title and text"
                )
            texts.append(f"{row[1]} {row[2]}")
            classes.append(_AG_NEWS_CLASSES.index(row[0]))
    except csv.Error as error:
        raise EgretError(f"{folder}/{name}: found no CSV ({error}), expected rows of it") from error
    return _classified(texts, classes, NEWS_VOCABULARY, NEWS_WORDS, f"{folder}/{name}")


def load_reviews(folder: Path | None) -> Splits:
    """Return the film reviews' sentences; class 1 is praise (`text/rt-polarity.pos`, `.neg`)."""
    texts: list[str] = []
    classes: list[int] = []
    for number, name in enumerate(("text/rt-polarity.neg", "text/rt-polarity.pos")):
        lines = _lines(_text(folder, name))
        if not lines:
            raise EgretError(f"{folder}/{name}: found no line, expected one for each sentence")
        texts += lines
        classes += [number] * len(lines)
    return _classified(texts, classes, REVIEW_VOCABULARY, REVIEW_WORDS, f"{folder}/text")


def load_sms(folder: Path | None) -> Splits:
    """Return the SMS; class 1 is spam (`text/sms.tsv`)."""
    name = "text/sms.tsv"
    texts, classes = [], []
    for number, line in enumerate(_lines(_text(folder, name)), 1):
        kind, tab, text = line.partition("\t")
        if kind not in _SMS_CLASSES or not tab:
            raise EgretError(
                f"{folder}/{name}: line {number}: found {line[:20]!r}, expected ham or spam, a tab "
                "and the text"
            )
        texts.append(text)
        classes.append(_SMS_CLASSES.index(kind))
    return _classified(texts, classes, SMS_VOCABULARY, SMS_WORDS, f"{folder}/{name}")


def load_shakespeare(folder: Path | None) -> Splits:
    """Return windows of characters; `y` are the characters after those of `x`.

    `text/tinyshakespeare.txt` is cut, in its order, into training, validation and test. Windows of
    training overlap by half; the others do not.
    """
    name = "text/tinyshakespeare.txt"
    text = _text(folder, name)
    where = f"{folder}/{name}"
    characters = sorted(set(text))
    if len(characters) > CHARACTERS:
        raise EgretError(
            f"{where}: found {len(characters)} distinct characters, expected at most {CHARACTERS}"
        )
    held = len(text) // 10
    if held <= CONTEXT:
        raise EgretError(
            f"{where}: found {len(text)} characters, expected {10 * (CONTEXT + 1)} or more"
        )
    place = {character: number for number, character in enumerate(characters)}
    numbers = torch.tensor([place[character] for character in text])
    bounds = (0, len(text) - 2 * held, len(text) - held, len(text))

    def windows(part: int, stride: int) -> Split:
        cut = numbers[bounds[part] : bounds[part + 1]].unfold(0, CONTEXT + 1, stride)
        return Split(cut[:, :-1].contiguous(), cut[:, 1:].contiguous())

    return Splits(windows(0, CONTEXT // 2), windows(1, CONTEXT), windows(2, CONTEXT))


def load_digits(folder: Path | None) -> Splits:
    """Return scikit-learn's digits in the recipe's split; no folder is needed."""
    del folder
    return load_digits_split()


DATA = {
    "digits": load_digits,
    "mnist": load_mnist,
    "ag_news": load_ag_news,
    "reviews": load_reviews,
    "sms": load_sms,
    "shakespeare": load_shakespeare,
}
"""Functions that read a data set, by name."""


@lru_cache(maxsize=2)
def load(name: str, folder: Path | None) -> Splits:
    """Read a data set of `DATA`.

    Parameters
    ----------
    name : str
        Its name.
    folder : Path or None
        Where its files lie; not needed for digits.

    Raises
    ------
    EgretError
        A file is missing or damaged; the message names it.
    """
    return DATA[name](folder)


def digest(splits: Splits) -> str:
    """Return a fingerprint of the samples, by which trainings on other data are told apart."""
    found = hashlib.sha256()
    for split in splits:
        for tensor in split:
            found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
