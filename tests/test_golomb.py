import bitstring
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egret.errors import FormatError
from egret.golomb import MAX_SUFFIX_BITS, best_order, decode_golomb, encode_golomb, golomb_bits

# The table of the paper (arXiv 2504.16968), written out by hand.
CODEWORDS = {
    0: "1 010 011 00100 00101 00110 00111 0001000 0001001 0001010",
    1: "10 11 0100 0101 0110 0111 001000 001001 001010 001011",
    2: "100 101 110 111 01000 01001 01010 01011 01100 01101",
    3: "1000 1001 1010 1011 1100 1101 1110 1111 010000 010001",
}
INDICES = st.lists(
    st.one_of(st.integers(0, 5), st.integers(0, 5000), st.integers(0, 2**31 - 1)), max_size=80
)


def bits_of(indices: list[int], order: int) -> str:
    data, bits = encode_golomb(np.array(indices, np.uint32), order)
    text = "".join(f"{byte:08b}" for byte in data)
    assert len(text) - bits < 8
    assert set(text[bits:]) <= {"0"}
    return text[:bits]


def stream(text: str) -> bytes:
    text = text.replace(" ", "")
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


@pytest.mark.parametrize("order", CODEWORDS)
def test_codewords_of_the_paper(order: int) -> None:
    words = CODEWORDS[order].split()
    assert [bits_of([index], order) for index in range(10)] == words
    joined = "".join(words)
    assert bits_of(list(range(10)), order) == joined
    found = decode_golomb(stream(joined), 10, order, bits=len(joined))
    assert found.tolist() == list(range(10))


@settings(derandomize=True, deadline=None)
@given(INDICES)
def test_order_0_is_the_ue_of_an_independent_codec(indices: list[int]) -> None:
    text = bits_of(indices, 0)
    assert bitstring.Bits(bin=text).unpack(["ue"] * len(indices)) == indices
    joined = bitstring.Bits().join(bitstring.Bits(ue=index) for index in indices)
    assert joined.bin == text


@settings(derandomize=True, deadline=None)
@given(INDICES, st.integers(0, 7))
def test_round_trip_and_definition(indices: list[int], order: int) -> None:
    expected = ""
    for index in indices:
        number = f"{index + 2**order:b}"
        expected += "0" * (len(number) - 1 - order) + number
    assert bits_of(indices, order) == expected
    data, bits = encode_golomb(np.array(indices, np.uint32), order)
    assert decode_golomb(data, len(indices), order, bits=bits).tolist() == indices
    if max(indices, default=0) <= 5000:
        histogram = np.bincount(np.array(indices, np.int64)) if indices else np.empty(0, int)
        assert golomb_bits(histogram, order) == bits


def test_long_streams_of_every_order() -> None:
    indices = np.random.default_rng(4).geometric(0.02, 50_000).astype(np.uint32) - 1
    lengths = {}
    for order in range(8):
        data, bits = encode_golomb(indices.reshape(50, 1000), order)
        np.testing.assert_array_equal(decode_golomb(data, indices.size, order, bits=bits), indices)
        lengths[order] = bits
    best = min(lengths, key=lambda order: lengths[order])
    assert best_order(np.bincount(indices)) == (best, lengths[best])


def test_best_order_takes_the_smallest_of_equals() -> None:
    assert best_order(np.array([5])) == (0, 5)
    # 1 + 3 = 2 + 2 bits.
    assert best_order(np.array([1, 1])) == (0, 4)


@pytest.mark.parametrize(
    ("text", "count", "bits", "message"),
    [
        ("1 010", 2, 3, "do not end within"),
        ("1 010 1", 2, 5, "take 4 bits, expected 5"),
        ("1 010", 1, 4, "take 1 bits, expected 4"),
        ("1 000", 2, 4, "do not end within"),
        ("1 010", 5, 4, "5 codewords in 4 bits"),
        ("1", 1, 9, "expected at most 8"),
        ("0" * 32 + "1" + "0" * 39, 1, 72, "more than 31 suffix bits"),
        ("0" * 80, 1, 80, "more than 31 suffix bits"),
    ],
)
def test_wrong_streams(text: str, count: int, bits: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_golomb(stream(text), count, 0, bits=bits)


def test_suffix_limit() -> None:
    # Index 7 has 3 zeros and 3 suffix bits at order 0.
    assert decode_golomb(stream("0001000"), 1, 0, bits=7, suffix_limit=3).tolist() == [7]
    with pytest.raises(FormatError, match="more than 2 suffix bits"):
        decode_golomb(stream("0001000"), 1, 0, bits=7, suffix_limit=2)
    # At order 2 the prefix has only one zero for index 4.
    assert decode_golomb(stream("01000"), 1, 2, bits=5, suffix_limit=3).tolist() == [4]
    with pytest.raises(FormatError, match="more than 2 suffix bits"):
        decode_golomb(stream("01000"), 1, 2, bits=5, suffix_limit=2)


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 60), st.integers(0, 7))
def test_any_bytes_decode_or_are_refused(data: bytes, count: int, order: int) -> None:
    try:
        indices = decode_golomb(data, count, order, bits=8 * len(data))
    except FormatError:
        return
    again, bits = encode_golomb(indices, order)
    assert (again.tobytes(), bits) == (data, 8 * len(data))


@pytest.mark.parametrize("order", [-1, 8])
def test_order_out_of_range(order: int) -> None:
    with pytest.raises(FormatError, match="expected 0 to 7"):
        encode_golomb(np.zeros(1, np.uint32), order)
    with pytest.raises(FormatError, match="expected 0 to 7"):
        decode_golomb(b"\xff", 1, order, bits=8)
    with pytest.raises(FormatError, match="expected 0 to 7"):
        golomb_bits(np.ones(1, int), order)


def test_index_out_of_range() -> None:
    with pytest.raises(FormatError, match="expected one below"):
        encode_golomb(np.array([1 << MAX_SUFFIX_BITS], np.uint64), 0)


@pytest.mark.parametrize("order", range(8))
def test_longest_codewords_at_every_bit_offset(order: int) -> None:
    for before in range(8):
        indices = [0] * before + [2**31 - 2, 2**30 + 12345, 3]
        data, bits = encode_golomb(np.array(indices, np.uint32), order)
        assert decode_golomb(data, len(indices), order, bits=bits).tolist() == indices
