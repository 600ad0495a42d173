"""The driver, on the golden model and on a mapped page, with everything that goes wrong."""

import dataclasses
import re
from collections import deque
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.image import HardwareImage, build_image
from egret.image_format import ErrorKind, PacketKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_hw.driver import Driver, MemoryMapped, TransportTimeout, map_registers, read_image
from egret_hw.registers import REGISTERS, register_named
from egret_sim.golden import GoldenAccelerator, read_header, reference_forward

PARAMS = AcceleratorParams(
    name="driven",
    lanes=2,
    parser_bits=4,
    parser_cut=2,
    bus_bits=64,
    batch=3,
    map_depth=64,
    activation_depth=32,
    row_depth=64,
)


def network(*sizes: int, seed: int = 1) -> IntegerNetwork:
    """Layers of these sizes, the input first."""
    rng = np.random.default_rng(seed)
    return IntegerNetwork(
        "network",
        tuple(
            IntegerLayer(
                name=f"layer{number}",
                weight=QuantizedTensor(
                    rng.integers(-9, 10, (sizes[number + 1], size)).astype(np.int32), 8
                ),
                bias=rng.normal(size=sizes[number + 1]).astype(np.float32),
                input_scale=0.05,
                output_scale=0.05,
                multiplier=4000,
                shift=20,
                relu=number % 2 == 0,
            )
            for number, size in enumerate(sizes[:-1])
        ),
    )


class GoldenTransport:
    """The golden model behind the driver's protocol; keeps what was queued and what comes."""

    def __init__(self, params: AcceleratorParams) -> None:
        self.golden = GoldenAccelerator(params)
        self.values: dict[int, int | None]
        self.values = {register.offset: register.constant(params) for register in REGISTERS}
        self.activations: deque[bytes] = deque()
        self.frames: deque[NDArray[np.int32]] = deque()
        self.error = (ErrorKind.NONE, 0)
        # Amid a packet: its other words are still to come, or to be discarded.
        self.amid_weights = self.amid_activations = self.discards = False
        # So many resets it takes until packets are taken again.
        self.hangs = 0
        self.sent: list[bytes] = []
        self.most_frames = 0

    def read_register(self, offset: int) -> int:
        live = {
            "ERROR": int(self.error[0]),
            "POSITION": self.error[1],
            "MATRICES": self.golden.good_matrices,
            "STATUS": 0x100,
        }
        for name, value in live.items():
            if register_named(name).offset == offset:
                return value
        return self.values[offset] or 0

    def write_register(self, offset: int, value: int) -> None:
        assert (offset, value) == (register_named("CONTROL").offset, 1)
        self.golden.clear()
        self.error = (ErrorKind.NONE, 0)
        self.hangs = max(0, self.hangs - 1)
        self.discards = self.amid_weights
        if self.amid_activations:
            # Discarded up to its end, which is still to come.
            self.activations.clear()

    def send_weights(self, packet: bytes) -> None:
        self.sent.append(packet)
        if self.amid_weights:
            self.amid_weights = False
            if not self.discards and self.error[0] is ErrorKind.NONE:
                self._fail(ErrorKind.CRC, 5)
            return
        if self.error[0] is not ErrorKind.NONE:
            return
        params = self.golden.params
        vectors = None
        header = read_header(packet)
        if header["kind"] == PacketKind.MATRIX and header["load_activations"]:
            data = self.activations.popleft()
            beat, columns = params.activation_bus_bits // 8, header["columns"]
            assert len(data) % beat == 0
            assert columns * params.batch <= len(data) < columns * params.batch + beat
            vectors = np.frombuffer(data, np.int8).reshape(-1, params.batch)[:columns]
        outcome = self.golden.run_packet(packet, vectors)
        if outcome.error is not ErrorKind.NONE:
            self._fail(outcome.error, outcome.position)
        self.frames += [stream.ravel() for stream in outcome.streams]
        self.most_frames = max(self.most_frames, len(self.frames))

    def _fail(self, kind: ErrorKind, position: int) -> None:
        self.error = (kind, position)
        self.frames.append(np.array([kind], np.int32))

    def send_activations(self, packet: bytes) -> None:
        if self.amid_activations:
            self.amid_activations = False
        elif self.error[0] is ErrorKind.NONE:
            self.activations.append(packet)

    def receive(self, beats: int) -> NDArray[np.int32]:
        if self.hangs or not self.frames:
            raise TransportTimeout("no result")
        return self.frames.popleft()

    def drain(self) -> None:
        if self.hangs:
            raise TransportTimeout("a packet was not taken")
        self.frames.clear()
        if self.error[0] is not ErrorKind.NONE:
            self.activations.clear()


def driven(
    made: IntegerNetwork,
    params: AcceleratorParams = PARAMS,
    emit: Literal["last", "all"] = "last",
) -> tuple[Driver, GoldenTransport, HardwareImage]:
    transport = GoldenTransport(params)
    image = build_image(made, params, emit=emit)
    driver = Driver(transport)
    driver.load(image)
    return driver, transport, image


def expected(made: IntegerNetwork, inputs: NDArray[np.int8]) -> NDArray[np.int32]:
    return reference_forward(made, inputs)[-1].results


def inputs_for(made: IntegerNetwork, count: int, seed: int = 1) -> NDArray[np.int8]:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (count, made.input_features)).astype(np.int8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_any_number_of_inputs(count: int) -> None:
    made = network(20, 30, 5)
    driver, _, _ = driven(made)
    for seed in (1, 2):
        inputs = inputs_for(made, count, seed)
        assert np.array_equal(driver.run(inputs), expected(made, inputs))


def test_several_columns_in_a_beat() -> None:
    made = network(41, 30, 5)
    driver, _, _ = driven(made, dataclasses.replace(PARAMS, activation_columns=4))
    inputs = inputs_for(made, 4)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))


@pytest.mark.parametrize("emit", ["last", "all"])
@pytest.mark.parametrize(
    "sizes",
    [(90, 30, 100), (70, 150), (20, 130), (1, 1), (33, 32, 1)],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def test_tiles_and_results_of_every_layer(
    sizes: tuple[int, ...], emit: Literal["last", "all"]
) -> None:
    made = network(*sizes)
    driver, transport, _ = driven(made, emit=emit)
    inputs = inputs_for(made, 5)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))
    assert not transport.frames
    assert not transport.activations


def test_the_next_pass_waits_while_results_are_taken() -> None:
    made = network(20, 5)
    driver, transport, _ = driven(made)
    driver.run(inputs_for(made, 12))
    assert transport.most_frames == 2


def test_single_results_are_not_mistaken_for_errors() -> None:
    made = network(4, 1)
    params = dataclasses.replace(PARAMS, batch=1)
    driver, transport, _ = driven(made, params)
    inputs = inputs_for(made, 3)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))
    transport.amid_weights = True
    with pytest.raises(EgretError, match=r"^accelerator: reports CRC at position 5"):
        driver.run(inputs[:1])


def test_parameters_and_counters() -> None:
    made = network(20, 5)
    driver, _, _ = driven(made)
    assert driver.params == dataclasses.replace(PARAMS, name="accelerator")
    driver.run(inputs_for(made, 7))
    counters = driver.counters()
    assert counters["matrices"] == 3
    assert list(counters) == [
        *("matrices", "cycles", "words", "stalls", "starved"),
        *("multiplies", "weights", "payload_words"),
    ]


def test_an_error_is_reported_and_recovered_from() -> None:
    made = network(20, 30, 5)
    driver, transport, image = driven(made)
    inputs = inputs_for(made, 4)
    bad = bytearray(image.packets[-1].data)
    bad[-image.params.bus_bits // 8 - 1] ^= 0x10
    broken = dataclasses.replace(image.packets[-1], data=bytes(bad))
    driver.load(dataclasses.replace(image, packets=(*image.packets[:-1], broken)))
    crc_word = len(bad) * 8 // image.params.bus_bits - 1
    message = f"accelerator: reports CRC at position {crc_word}, after 1 matrices"
    with pytest.raises(EgretError, match=f"^{re.escape(message)}$"):
        driver.run(inputs)
    with pytest.raises(EgretError, match=r"^accelerator: no image is loaded, expected load\(\)"):
        driver.run(inputs)
    driver.load(image)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))
    assert transport.error == (ErrorKind.NONE, 0)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("activations", [False, True])
def test_packets_that_another_program_began(weights: bool, activations: bool) -> None:
    made = network(20, 5)
    transport = GoldenTransport(PARAMS)
    transport.amid_weights, transport.amid_activations = weights, activations
    driver = Driver(transport)
    driver.load(build_image(made, PARAMS))
    inputs = inputs_for(made, 4)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))


def test_a_run_that_hangs() -> None:
    made = network(20, 5)
    driver, transport, image = driven(made)
    transport.hangs = 2
    message = "no result; error 0, weight_tvalid 1, weight_tready 0, act_tvalid 0"
    with pytest.raises(TransportTimeout, match=f"^{message}"):
        driver.run(inputs_for(made, 1))
    driver.load(image)
    inputs = inputs_for(made, 4)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))


def test_results_of_a_wrong_length() -> None:
    made = network(20, 5)
    driver, transport, _ = driven(made)
    transport.frames.append(np.zeros(4, np.int32))
    message = "accelerator: found a packet of 4 results, expected 15"
    with pytest.raises(EgretError, match=f"^{message}$"):
        driver.run(inputs_for(made, 1))


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (np.zeros((2, 19), np.int8), "int8 of shape (2, 19)"),
        (np.zeros((0, 20), np.int8), "int8 of shape (0, 20)"),
        (np.zeros(20, np.int8), "int8 of shape (20,)"),
        (np.zeros((2, 20), np.uint8), "uint8 of shape (2, 20)"),
    ],
)
def test_inputs_that_do_not_fit(inputs: NDArray[np.int8], found: str) -> None:
    driver, _, _ = driven(network(20, 5))
    message = f"accelerator: activations: found {found}, expected int8 of shape (n, 20), n >= 1"
    with pytest.raises(EgretError, match=f"^{re.escape(message)}$"):
        driver.run(inputs)


@pytest.mark.parametrize(
    ("register", "value", "message"),
    [
        ("ID", 0, "board: register ID: found 0x00000000, expected 0x54524745"),
        ("VERSION", 0x00010001, "board: reads images of version 1, expected 2"),
        ("PARAM_LANES", 5, "board: parameter lanes: found 5, expected a power of two to 64"),
    ],
)
def test_another_core(register: str, value: int, message: str) -> None:
    transport = GoldenTransport(PARAMS)
    transport.values[register_named(register).offset] = value
    with pytest.raises(EgretError, match=f"^{re.escape(message)}"):
        Driver(transport, "board")


def test_an_image_for_other_parameters() -> None:
    made = network(20, 5)
    driver, transport, _ = driven(made)
    other = dataclasses.replace(PARAMS, codes=("eg-k",), row_depth=128)
    with pytest.raises(
        EgretError, match=r"^accelerator: the image's parameter codes is \('eg-k',\), expected the"
    ):
        driver.load(build_image(made, other))
    # Neither name, nor vendor, nor the order of the codes matters.
    same = dataclasses.replace(
        PARAMS, name="mine", vendor="ecp5", codes=tuple(reversed(PARAMS.codes))
    )
    driver.load(build_image(made, same))
    inputs = inputs_for(made, 2)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))
    assert transport.sent


def test_mapped_registers(tmp_path: Path) -> None:
    streams = GoldenTransport(PARAMS)
    device = tmp_path / "device"
    page = np.zeros(2048, "<u4")
    page[1024:][[offset // 4 for offset in streams.values]] = [
        value or 0 for value in streams.values.values()
    ]
    device.write_bytes(page.tobytes())
    registers = map_registers(str(device), 4096)
    driver = Driver(MemoryMapped(registers, streams))
    assert driver.params == dataclasses.replace(PARAMS, name="accelerator")
    control = 1024 + register_named("CONTROL").offset // 4

    def read(place: int) -> int:
        return int(np.frombuffer(device.read_bytes(), "<u4")[place])

    assert read(control) == 0
    # A file's page has no pulse, nor a core that it would reset.
    streams.error = (ErrorKind.CRC, 0)
    driver.soft_reset()
    assert read(control) == 1
    assert read(1024 + register_named("CYCLES").offset // 4) == driver.counters()["cycles"] == 0
    registers[register_named("CYCLES").offset // 4] = 77
    assert driver.counters()["cycles"] == 77


def test_stored_images(tmp_path: Path) -> None:
    made = network(40, 30, 5)
    image = build_image(made, PARAMS)
    (tmp_path / "model.bin").write_bytes(image.data)
    (tmp_path / "model.json").write_text(image.listing)
    stored = read_image(tmp_path / "model.bin", PARAMS)
    assert [packet.data for packet in stored.setup] == [packet.data for packet in image.setup]
    assert [packet.data for packet in stored.packets] == [packet.data for packet in image.packets]
    driver = Driver(GoldenTransport(PARAMS))
    driver.load(stored)
    inputs = inputs_for(made, 4)
    assert np.array_equal(driver.run(inputs), expected(made, inputs))


@pytest.mark.parametrize(
    ("binary", "listing", "message"),
    [
        (None, "{}", "model.bin: cannot be read: No such file or directory"),
        (b"", None, "model.json: cannot be read: No such file or directory"),
        (b"", "{", "model.json: not JSON: "),
        (b"", "[]", "model.json: not a list of packets as `egret image` writes it"),
        (b"", '{"bus_bits": 32}', "model.json: bus_bits: found 32, expected 64"),
        (b"", '{"bus_bits": 64, "setup": []}', "model.json: not a list of packets"),
        (
            b"",
            '{"bus_bits": 64, "setup": [], "packets": [{"first": "a", "words": 2}]}',
            "model.json: not a list of packets",
        ),
        (
            bytes(15),
            '{"bus_bits": 64, "setup": [], "packets": [{"first": 0, "words": 2}]}',
            "model.bin: found 15 bytes, expected those of the packets in model.json: 16",
        ),
    ],
)
def test_stored_images_that_are_none(
    binary: bytes | None, listing: str | None, message: str, tmp_path: Path
) -> None:
    if binary is not None:
        (tmp_path / "model.bin").write_bytes(binary)
    if listing is not None:
        (tmp_path / "model.json").write_text(listing)
    with pytest.raises(EgretError, match=re.escape(message)):
        read_image(tmp_path / "model.bin", PARAMS)


def test_registers_that_cannot_be_mapped(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(EgretError, match=r"none: cannot map the registers at 0x0: .*No such file"):
        map_registers(str(missing))
    (tmp_path / "short").write_bytes(b"1")
    with pytest.raises(EgretError, match=r"short: cannot map the registers at 0x1000: "):
        map_registers(str(tmp_path / "short"), 4096)
