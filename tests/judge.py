"""Hold Egret's reader against the independent one on the same bytes."""

from contextlib import suppress
from pathlib import Path

import numpy as np
from tests import independent_decoder
from tests.independent_decoder import BadFile, Tensor, TooLarge

from egret.codebook import Codebook
from egret.container import Container, RawRecord
from egret.errors import EgretError, FormatError


def egret_reads(path: Path, data: bytes | None = None, *, threads: int = 1) -> dict[str, Tensor]:
    """Read everything of a container with Egret, in the independent reader's terms."""
    with Container(path, data) as container:
        container.verify(threads=threads)
        tensors = {}
        for name in container.names:
            record = container.record(name)
            if isinstance(record, RawRecord):
                stored = bytes(container.raw(name).data)
                tensors[name] = Tensor(record.dtype, record.shape, data=stored)
            else:
                quantized = container.quantized(name, threads=threads)
                assert quantized.values.shape == record.shape
                tensors[name] = Tensor(
                    quantized.dtype,
                    quantized.shape,
                    values=quantized.values.reshape(-1).tolist(),
                    step=quantized.step_log2,
                )
            restored = container.restored(name)
            assert (restored.dtype, restored.shape) == (record.dtype, record.shape)
            expected = tensors[name].restored()
            assert bytes(restored.data) == expected, f"{name!r} is restored to other elements"
        return tensors


def rows_agree(path: Path, data: bytes | None = None) -> None:
    """Check that rows decoded alone are those of the whole tensor."""
    with Container(path, data) as container:
        for name in container.coded_names:
            whole = container.quantized(name).values
            if whole.ndim == 0:
                continue
            rows = whole.shape[0]
            for first, last in {(0, rows), (0, 0), (rows, rows), (rows // 3, rows - rows // 4)}:
                part = container.quantized(name, rows=(first, last)).values
                np.testing.assert_array_equal(part, whole[first:last], err_msg=f"{name!r}")


def is_version_1(data: bytes) -> bool:
    """Tell whether only Egret reads this container, because it is of version 1."""
    place = data.find(b"EGRT")
    return data[place + 4 : place + 6] == b"\1\0"


def judge(path: Path, data: bytes, *, max_elements: int = 10**7) -> dict[str, Tensor] | None:
    """Read a file's bytes with both; both must refuse them or find the same.

    Parameters
    ----------
    path : Path
        Name of the file for messages; nothing is read from it.
    data : bytes
        The file.
    max_elements : int
        Coded elements from which on neither is asked for the tensors.

    Returns
    -------
    dict of str to Tensor, or None
        What they found; None when they refused it.
    """
    refusal = failure = None
    expected: dict[str, Tensor] | None = None
    found: dict[str, Tensor] | None = None
    try:
        expected = independent_decoder.read(data, max_elements)
    except BadFile as error:
        refusal = str(error)
    except TooLarge:
        # Opening must still end well.
        with suppress(FormatError), Container(path, data):
            pass
        return None
    try:
        found = egret_reads(path, data)
    except EgretError as error:
        failure = str(error)
    if failure is not None:
        assert refusal is not None, f"Egret refuses what the format allows: {failure}"
        assert "\n" not in failure, f"more than one line: {failure}"
        assert len(failure) < 1100, f"too long: {failure}"
        assert str(path) in failure, f"without the file's name: {failure}"
        return None
    assert refusal is None, f"Egret reads what the format refuses: {refusal}"
    assert found == expected, "Egret and the independent decoder find different tensors"
    rows_agree(path, data)
    return found


def judge_book(data: bytes, *, max_symbols: int = 1 << 16) -> None:
    """Read bytes as a codebook with both; both must refuse them or find the same."""
    refusal = failure = None
    try:
        expected = independent_decoder.read_book(data)
    except BadFile as error:
        refusal = str(error)
    try:
        found = Codebook.from_bytes(data)
    except FormatError as error:
        failure = str(error)
    assert (refusal is None) == (failure is None), f"{refusal!r} but {failure!r}"
    if refusal is not None:
        return
    assert found.level.suffix_bits == expected.level.suffix_bits
    assert (found.level.order is None) == expected.level.is_table
    assert (found.run is None) == (expected.run is None)
    if found.run is not None and expected.run is not None:
        assert found.run.suffix_bits == expected.run.suffix_bits
    if found.values is None:
        assert expected.numbers is None
    else:
        indices = range(min(found.values.size, max_symbols))
        assert found.values[: len(indices)].tolist() == [expected.value(i) for i in indices]
        assert expected.numbers is not None
        assert found.values.size == len(expected.numbers)
    # Written again it may be shorter or longer, but is the same codebook.
    again = Codebook.from_bytes(found.data)
    assert again.data == found.data
    assert (again.name, again.map_kind, again.limit) == (found.name, found.map_kind, found.limit)
