"""The driver on the simulated top: AXI4-Lite from another author, errors, resets, a hang."""

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.image import HardwareImage, build_image
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_hw.driver import Driver, TransportTimeout
from egret_hw.registers import register_named
from egret_hw.rtl import generate_verilog
from egret_sim.driver import SimulatedTransport
from egret_sim.golden import reference_forward

PARAMS = AcceleratorParams(
    name="driven",
    lanes=2,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    batch=2,
    map_depth=32,
    activation_depth=32,
    row_depth=32,
)
SIZES = (40, 30, 7)


@lru_cache
def network() -> IntegerNetwork:
    rng = np.random.default_rng(1)
    return IntegerNetwork(
        "network",
        tuple(
            IntegerLayer(
                name=f"layer{number}",
                weight=QuantizedTensor(
                    rng.integers(-9, 10, (rows, columns)).astype(np.int32)
                    * rng.integers(0, 2, (rows, columns)).astype(np.int32),
                    8,
                ),
                bias=rng.normal(size=rows).astype(np.float32),
                input_scale=0.05,
                output_scale=0.05,
                multiplier=4000,
                shift=20,
                relu=number == 0,
            )
            for number, (columns, rows) in enumerate(pairwise(SIZES))
        ),
    )


@lru_cache
def image() -> HardwareImage:
    return build_image(network(), PARAMS)


def inputs(count: int) -> NDArray[np.int8]:
    return np.random.default_rng(count).integers(-128, 128, (count, SIZES[0])).astype(np.int8)


def expected(vectors: NDArray[np.int8]) -> NDArray[np.int32]:
    return reference_forward(network(), vectors)[-1].results


@pytest.fixture(scope="module")
def verilog() -> str:
    return generate_verilog(PARAMS)


@pytest.fixture
def transport(verilog: str) -> Iterator[SimulatedTransport]:
    with SimulatedTransport(PARAMS, verilog=verilog, timeout=20_000) as simulated:
        yield simulated


@pytest.mark.parametrize("pause", ["none", "random", "bursts"])
def test_runs(verilog: str, pause: str) -> None:
    with SimulatedTransport(PARAMS, verilog=verilog, pause=pause) as simulated:
        driver = Driver(simulated)
        assert driver.params == dataclasses.replace(PARAMS, name="accelerator")
        driver.load(image())
        for count in (1, 5):
            assert np.array_equal(driver.run(inputs(count)), expected(inputs(count)))
        counters = driver.counters()
    passes = 1 + 3
    words = sum(len(packet.data) for packet in image().packets) * 8 // PARAMS.bus_bits
    setup = sum(len(packet.data) for packet in image().setup) * 8 // PARAMS.bus_bits
    assert counters["matrices"] == passes * len(image().matrices)
    assert counters["words"] == setup + passes * words
    assert counters["weights"] == passes * sum(a * b for a, b in pairwise(SIZES))
    assert counters["multiplies"] == passes * sum(matrix.multiplied for matrix in image().matrices)
    assert counters["payload_words"] == passes * sum(
        matrix.payload_words for matrix in image().matrices
    )
    assert counters["cycles"] > counters["words"]


def test_registers(transport: SimulatedTransport) -> None:
    scratch = register_named("SCRATCH").offset
    for value in (0, 0xFFFFFFFF, 0x12345678):
        transport.write_register(scratch, value)
        assert transport.read_register(scratch) == value
    with pytest.raises(EgretError, match=r"a read of 0x03c: answered with SLVERR, expected OKAY"):
        transport.read_register(0x03C)
    with pytest.raises(EgretError, match=r"a write to 0x000: answered with SLVERR, expected OKAY"):
        transport.write_register(0, 1)
    assert Driver(transport).counters()["cycles"] == 0


def damaged() -> HardwareImage:
    packets = list(image().packets)
    data = bytearray(packets[-1].data)
    data[-8] ^= 1
    packets[-1] = dataclasses.replace(packets[-1], data=bytes(data))
    return dataclasses.replace(image(), packets=tuple(packets))


def test_errors_and_recovery(transport: SimulatedTransport) -> None:
    driver = Driver(transport)
    status = register_named("STATUS").offset
    for _ in range(2):
        driver.load(damaged())
        with pytest.raises(EgretError, match="accelerator: reports CRC at position"):
            driver.run(inputs(5))
        assert transport.read_register(status) & 1
        driver.load(image())
        assert transport.read_register(status) & 1 == 0
        assert np.array_equal(driver.run(inputs(3)), expected(inputs(3)))


def test_a_hang_and_packets_cut_off(transport: SimulatedTransport) -> None:
    driver = Driver(transport)
    driver.load(image())
    # The first matrix waits for activations that nobody sends.
    for packet in image().packets:
        transport.send_weights(packet.data)
    with pytest.raises(TransportTimeout, match="no result in 20000 cycles"):
        transport.receive(1)
    driver.load(image())
    assert np.array_equal(driver.run(inputs(3)), expected(inputs(3)))


def test_ending_twice_and_using_it_afterwards(verilog: str) -> None:
    with SimulatedTransport(PARAMS, verilog=verilog) as simulated:
        assert simulated.read_register(0) != 0
    simulated.close()
    with pytest.raises(EgretError, match=r"egret_driven: the simulation has ended"):
        simulated.read_register(0)


def test_a_design_that_cannot_be_built() -> None:
    with pytest.raises(EgretError, match="the simulation has ended") as caught:
        SimulatedTransport(PARAMS, verilog="module egret_driven(input aclk; endmodule\n")
    assert "did not run" in str(caught.value.__cause__)
