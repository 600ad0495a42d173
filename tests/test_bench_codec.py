"""The codec bench: its peers lose nothing, and its sizes and limits are what they say."""

import dataclasses
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import codec, peers, workloads
from benchmarks.codec_report import Check, Results, draw, format_results, write_json
from benchmarks.peers import Coded, Missing, Peer
from numpy.typing import NDArray

from egret.errors import EgretError, FormatError
from egret.quantize import QuantizedTensor
from egret.safetensors_file import RawTensor
from egret.statistics import entropy_bits, huffman_bits

PEERS, _ = peers.load_peers(Path(__file__).parent.parent / codec.PEERS_FOLDER)


def normal(shape: tuple[int, ...], scale: float, seed: int) -> NDArray[np.int32]:
    return np.rint(np.random.default_rng(seed).normal(0, scale, shape)).astype(np.int32)


def pruned(values: NDArray[np.int32], least: int) -> NDArray[np.int32]:
    return np.where(np.abs(values) < least, 0, values).astype(np.int32)


VALUES = {
    "dense": normal((60, 50), 20.0, 1),
    "sparse": normal((60, 50), 0.3, 2),
    "pruned": pruned(normal((64, 3, 3, 3), 9.0, 3), 8),
    "vector": normal((300,), 3.0, 4),
    "all zero": np.zeros((7, 5), np.int32),
    "one value": np.full((7, 5), -3, np.int32),
    "two elements": np.array([[4, 0]], np.int32),
    "wide": normal((40, 40), 9000.0, 5),
}


def case(
    coded: dict[str, NDArray[np.int32]], raw: dict[str, RawTensor] | None = None
) -> workloads.Case:
    tensors = {name: QuantizedTensor(values, 0, "I32") for name, values in coded.items()}
    return workloads.Case("net", "2^-8", 0.0, True, tensors, raw or {})


class Plain(Peer):
    """Stores 32 bits for each value, and changes what it is told to change."""

    note = "as it is"
    version = "1"

    def __init__(self, name: str, change: Callable[[NDArray[np.int32]], Any] = np.copy) -> None:
        self.name = name
        self._change = change

    def accepts(self, values: NDArray[np.int32]) -> bool:
        return bool(values.max() < 100)

    def encode(self, prepared: Any) -> Coded:
        return Coded(prepared.copy(), 32 * prepared.size)

    def decode(self, coded: Coded, out: NDArray[np.int32]) -> Any:
        return self._change(coded.data)


# --- peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        pytest.param(peer, name, id=f"{peer.name}-{name}")
        for peer in PEERS
        for name, values in VALUES.items()
        if peer.accepts(values)
    ],
)
def test_peer_returns_what_it_was_given(peer: Peer, name: str) -> None:
    values = VALUES[name]
    coded = peer.encode(peer.prepare(values))
    found = peer.finish(peer.decode(coded, np.full_like(values, 99)), values.shape)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, values)
    assert coded.bits > 0


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer_counts_at_least_most_of_the_entropy(peer: Peer) -> None:
    values = normal((300, 300), 5.0, 6)
    entropy = entropy_bits(np.unique(values, return_counts=True)[1])
    # Independent draws leave nothing for contexts and repetitions to gain.
    assert 0.999 * entropy < peer.encode(peer.prepare(values)).bits < 1.2 * entropy


@pytest.mark.parametrize("ans", [peer for peer in PEERS if peer.name == "ANS"])
def test_ans_takes_the_fitted_model_where_it_is_cheaper(ans: Peer) -> None:
    values = normal((20, 20), 30.0, 7)
    present, counts = np.unique(values, return_counts=True)
    # Eight bits for each of over a hundred values would be too much by far.
    least = entropy_bits(counts) + 8 * len(present)
    assert entropy_bits(counts) < ans.encode(values).bits < least


def test_peers_that_cannot_run_are_named(tmp_path: Path) -> None:
    found, missing = peers.load_peers(tmp_path)
    names = [peer.name for peer in found] + [peer.name for peer in missing]
    assert sorted(names) == ["ANS", "DeepCABAC", "Ethos-U", "zstd -1", "zstd -19"]
    assert all(peer.reason for peer in missing)


@pytest.mark.parametrize(
    ("counts", "lengths"),
    [([5], [1]), ([1, 1], [1, 1]), ([1, 1, 2, 4], [3, 3, 2, 1]), ([3, 3, 3, 3], [2, 2, 2, 2])],
)
def test_huffman_lengths(counts: list[int], lengths: list[int]) -> None:
    assert peers.huffman_lengths(np.array(counts)).tolist() == lengths


@pytest.mark.parametrize("seed", range(5))
def test_huffman_code_is_complete_and_shortest(seed: int) -> None:
    counts = np.random.default_rng(seed).geometric(0.02, 200)
    lengths = peers.huffman_lengths(counts)
    assert sum(2.0**-length for length in lengths.tolist()) == 1
    assert int(lengths @ counts) == huffman_bits(counts), f"seed {seed}"


def test_huffman_payload_by_hand() -> None:
    # Codewords of 2, 1, 2 bits. Two numbers of 24 bits, two gaps of 1; lengths: 5, then the
    # differences -1 and 1, whose zigzags 1 and 2 take three bits each.
    payload = peers.huffman_payload_bits(np.array([-1, 0, 1]), np.array([1, 2, 1]))
    assert payload == (2 + 2 + 2) + (48 + 2) + (5 + 3 + 3)


def test_plain_storage_by_hand() -> None:
    values = np.zeros((20, 2), np.int32)
    values[[0, 19], 0] = [-4, 3]
    # Three bits a value. Row numbers of five bits; three pointers to up to two entries.
    assert peers.column_bits(values) == 2 * (5 + 3) + 3 * 2
    # Eighteen zeros between the two need an entry of their own; pointers count up to three.
    assert peers.eie_bits(values) == 3 * (4 + 3) + 3 * 2
    assert peers.dense_bits(values) == 40 * 8
    assert peers.dense_bits(values * 100) == 40 * 16
    assert peers.dense_bits(values * 10000) == 40 * 32


# --- workloads ---------------------------------------------------------------------------------


def llama2c(vocabulary: int, classifier: bool) -> tuple[bytes, int]:
    """Return a file whose floats count upwards, and how many there are."""
    width, hidden, layers, heads, key_heads, length = 8, 12, 2, 4, 2, 3
    layer = 2 * width + 2 * width * width + 2 * (key_heads * 2) * width + 3 * width * hidden
    floats = vocabulary * width * (2 if classifier else 1) + layers * layer + width + length * 2
    sign = -1 if classifier else 1
    head = struct.pack("<7i", width, hidden, layers, heads, key_heads, sign * vocabulary, length)
    return head + np.arange(floats, dtype="<f4").tobytes(), floats


def test_reads_llama2c(tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(llama2c(5, False)[0])
    model = workloads.read_model(path)
    assert model.name == "tiny"
    assert model.weights["embedding"][0].tolist() == list(range(8))
    assert model.others["layers.1.attention_norm"].tolist() == list(range(48, 56))
    assert model.weights["layers.0.wq"][0, 0] == 56
    assert model.weights["layers.1.wq"][0, 0] == 56 + 64
    assert model.weights["layers.0.wk"].shape == (4, 8)
    assert model.weights["layers.1.w2"].shape == (8, 12)
    assert "classifier" not in model.weights


def test_reads_the_classifier_of_llama2c_behind_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    data, floats = llama2c(5, True)
    path.write_bytes(data)
    weights = workloads.read_model(path).weights
    assert weights["classifier"].shape == (5, 8)
    assert weights["classifier"][-1, -1] == floats - 1


@pytest.mark.parametrize(
    "data",
    [b"abc", bytes(40), llama2c(5, False)[0][:-4], b"\1" * 100],
    ids=["short", "zeros", "truncated", "huge"],
)
def test_refuses_what_is_not_llama2c(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"broken\.bin: found"):
        workloads.read_model(path)


def test_prunes_the_smallest() -> None:
    weights = np.array([[0.5, -0.1, 0.3], [-0.4, 0.2, -0.6]], np.float32)
    found = workloads.prune(weights, 0.5)
    np.testing.assert_array_equal(found, np.array([[0.5, 0, 0], [-0.4, 0, -0.6]], np.float32))
    assert workloads.prune(weights, 0.0) is weights


@pytest.mark.parametrize("largest", [0.9, 1.0, 126.6, 3e-5])
def test_int8_uses_the_range(largest: float) -> None:
    weights = np.linspace(-largest, largest, 101, dtype=np.float32)
    power = workloads.quantise(weights, "int8 2^-n", "w")
    assert 63 <= int(np.abs(power.values).max()) <= 127
    assert workloads.quantise(weights, "int8 scale", "w").values.max() == 127
    assert not workloads.quantise(0 * weights, "int8 scale", "w").values.any()


def test_a_model_codes_matrices_and_keeps_the_rest() -> None:
    weights = {"a": np.ones((2, 3), np.float32)}
    model = workloads.Model("net", weights, {"bias": np.ones(3, np.float32)})
    found = model.case("2^-8", 0.0)
    assert found.coded["a"].values.tolist() == [[256] * 3] * 2
    assert list(found.raw) == ["bias"]


@pytest.mark.parametrize("entropy", [0.3, 3.0, 7.0])
@pytest.mark.parametrize("shape", [0.2, 1.0, 2.0])
def test_draws_have_the_entropy_asked_for(shape: float, entropy: float) -> None:
    (weights,) = workloads.draw_weights(1 << 16, shape, (entropy,))
    assert weights.shape == (256, 256)
    counts = np.unique(np.rint(weights), return_counts=True)[1]
    assert entropy_bits(counts) / weights.size == pytest.approx(entropy, rel=0.01)


# --- measuring ---------------------------------------------------------------------------------


def limits(checks: list[Check]) -> dict[str, float | None]:
    return {check.limit.split(",")[0]: check.bound for check in checks}


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    bias = RawTensor("F32", (4,), bytes(16))
    sizes = codec.measure_sizes(
        case({"a": VALUES["dense"], "b": VALUES["pruned"]}, {"bias": bias}),
        [Plain("DeepCABAC")],
        tmp_path,
    )
    assert sizes.file_bytes == (tmp_path / "network.egret").stat().st_size
    assert sizes.weights == 3000 + 1728
    assert sizes.raw_bytes == 16
    overhead = sizes.file_bytes - sizes.bits["Egret"] / 8 - 16
    assert sizes.index_bytes < overhead < sizes.index_bytes + 1000
    by_hand = sum(
        -count * math.log2(count / values.size)
        for values in (VALUES["dense"], VALUES["pruned"])
        for count in np.unique(values, return_counts=True)[1].tolist()
    )
    assert sizes.bits["entropy"] == pytest.approx(by_hand)
    assert sizes.per_weight("DeepCABAC") == 32
    assert sizes.bits["dense"] == 8 * sizes.weights
    assert limits(sizes.checks) == {"/ entropy": 1.03, "/ Huffman": 1.025}


def test_sparse_networks_have_the_limits_of_sparse_ones(tmp_path: Path) -> None:
    sizes = codec.measure_sizes(
        case({"a": VALUES["sparse"]}), [Plain("DeepCABAC"), Plain("Ethos-U")], tmp_path
    )
    assert limits(sizes.checks) == {
        "/ entropy": 1.03,
        "/ Huffman": 1.0,
        "/ DeepCABAC": 1.01,
        "tensors not below Ethos-U": 0,
    }
    assert sizes.compared == 1
    assert sizes.larger == []


def test_sparse_sources_have_no_limit_above_their_entropy(tmp_path: Path) -> None:
    drawn = dataclasses.replace(case({"a": VALUES["sparse"]}), trained=False)
    sizes = codec.measure_sizes(drawn, [Plain("DeepCABAC")], tmp_path)
    assert limits(sizes.checks) == {"/ entropy": None, "/ Huffman": 1.0}


def test_names_tensors_that_are_no_smaller(tmp_path: Path) -> None:
    class Tiny(Plain):
        def encode(self, prepared: Any) -> Coded:
            return Coded(prepared.copy(), 8)

    sizes = codec.measure_sizes(case({"a": VALUES["sparse"]}), [Tiny("Ethos-U")], tmp_path)
    assert [name.split()[0] for name in sizes.larger] == ["a"]
    assert not sizes.checks[-1].passed


def test_a_codec_that_cannot_hold_a_tensor_has_no_figure(tmp_path: Path) -> None:
    tensors = {"a": VALUES["sparse"], "b": VALUES["wide"]}
    sizes = codec.measure_sizes(case(tensors), [Plain("Ethos-U")], tmp_path)
    assert "Ethos-U" not in sizes.bits
    assert math.isnan(sizes.per_weight("Ethos-U"))
    assert sizes.compared == 1


def spoil(values: NDArray[np.int32]) -> NDArray[np.int32]:
    spoilt = values.copy()
    spoilt.flat[-1] += 1
    return spoilt


def test_a_lossy_codec_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EgretError, match="Lossy, a: the decoded values"):
        codec.measure_sizes(case({"a": VALUES["dense"]}), [Plain("Lossy", spoil)], tmp_path)
    with pytest.raises(EgretError, match="Lossy, here: the decoded values"):
        codec.measure_speeds(
            "here", VALUES["dense"], [codec.EgretCodec(), Plain("Lossy", spoil)], 1
        )


def test_speeds_are_of_every_codec_that_takes_the_values(tmp_path: Path) -> None:
    codecs = [
        codec.EgretCodec(),
        codec.EgretCodec(2),
        codec.EgretFile(tmp_path),
        Plain("DeepCABAC"),
        Plain("ANS"),
    ]
    speeds = codec.measure_speeds("here", VALUES["sparse"], codecs, 2)
    assert [speed.codec for speed in speeds] == [peer.name for peer in codecs]
    assert all(speed.decode > 0 and len(speed.decode_seconds) == 2 for speed in speeds)
    assert [speed.encode is None for speed in speeds] == [False, True, False, False, False]
    assert limits(speeds[0].checks) == {
        "decoded": 1000,
        "decoded / DeepCABAC": 30,
        "decoded / ANS": 8,
        "encoded": 150,
    }
    dense = codec.measure_speeds("there", VALUES["wide"], codecs, 1)
    assert [speed.codec for speed in dense] == [peer.name for peer in codecs[:3]]
    assert limits(dense[0].checks) == {"decoded": 300, "encoded": 150}


def test_bounds_belong_to_the_good_side() -> None:
    assert Check("x", 1.0, 1.0).passed
    assert not Check("x", 1.001, 1.0).passed
    assert Check("x", 1.0, 1.0, at_most=False).passed
    assert not Check("x", 0.999, 1.0, at_most=False).passed
    assert Check("x", 2.0, None).verdict == "2"


# --- reporting ---------------------------------------------------------------------------------


def results(tmp_path: Path) -> Results:
    network = codec.measure_sizes(case({"a": VALUES["dense"]}), [Plain("ANS")], tmp_path)
    source = codec.measure_sizes(case({"a": VALUES["sparse"]}), [Plain("ANS")], tmp_path)
    network.checks[:] = [Check("/ entropy", 1.5, 1.03), Check("/ Huffman", 0.9, 1.025)]
    return Results(
        machine={"cores": 3},
        codecs={"ANS": "1; as it is"},
        missing=[Missing("DeepCABAC", "not built")],
        networks=[network],
        sources=[source],
        speeds=codec.measure_speeds("here", VALUES["dense"], [codec.EgretCodec()], 1),
    )


def test_report_names_what_missed_and_what_is_missing(tmp_path: Path) -> None:
    found = results(tmp_path)
    text = format_results(found)
    assert "DeepCABAC: NOT RUN, not built" in text
    assert "not judged against DeepCABAC: not built" in text
    assert "net, 2^-8: / entropy: 1.5 ≤ 1.03 MISS" in text
    assert "0.9 ≤ 1.025 PASS" in text
    assert f"{found.networks[0].per_weight('entropy'):.3f}" in text


def test_json_holds_the_figures(tmp_path: Path) -> None:
    found = results(tmp_path)
    write_json(found, tmp_path / "figures.json")
    read = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert read["networks"][0]["bits"] == found.networks[0].bits
    assert [check["passed"] for check in read["networks"][0]["checks"]] == [False, True]
    assert read["speeds"][0]["decode"] == found.speeds[0].decode
    assert read["missing"] == [{"name": "DeepCABAC", "reason": "not built"}]


def test_charts_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    found = results(tmp_path)
    object.__setattr__(found.networks[0], "scheme", "int8 2^-n")
    first = draw(found, tmp_path / "one")
    assert [path.name for path in first] == [
        "codec-bits.svg",
        "codec-sources.svg",
        "codec-speed.svg",
    ]
    second = draw(found, tmp_path / "two")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert b"<svg" in first[0].read_bytes()
