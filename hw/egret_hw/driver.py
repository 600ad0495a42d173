"""Driver: runs networks on an accelerator with NumPy arrays, whatever leads to it.

A `Transport` is what leads to it: a simulation (`egret_sim.driver`), or a mapped page of registers
and DMA engines (`MemoryMapped`).
"""

import json
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.image_format import (
    IMAGE_VERSION,
    MATRIX_BYTES,
    MATRIX_FIELDS,
    ErrorKind,
    PacketKind,
)
from egret.params import AcceleratorParams
from egret_hw.registers import (
    ADDRESS_BITS,
    CORE_ID,
    COUNTERS,
    REGISTERS,
    decode_params,
    register_named,
)

__all__ = [
    "Driver",
    "Image",
    "MemoryMapped",
    "Packet",
    "StoredImage",
    "StoredPacket",
    "Streams",
    "Transport",
    "TransportTimeout",
    "map_registers",
    "read_image",
]


class TransportTimeout(EgretError):
    """Results did not come, or packets were not taken, in time."""


class Packet(Protocol):
    """What the driver needs of a packet of an image, for example `egret.image.Packet`."""

    @property
    def data(self) -> bytes:
        """Its bus words."""


class Image(Protocol):
    """What the driver needs of an image, for example `egret.image.HardwareImage`."""

    @property
    def params(self) -> AcceleratorParams:
        """What it was made for."""

    @property
    def setup(self) -> Sequence[Packet]:
        """Packets to send once."""

    @property
    def packets(self) -> Sequence[Packet]:
        """Packets to send for every pass."""


class Streams(Protocol):
    """Moves packets of the three AXI4-Stream ports, by DMA for instance."""

    def send_weights(self, packet: bytes) -> None:
        """Queue a packet for `s_axis_weight`, TLAST on its last word.

        Must not wait until it is taken, which may need results to be received first. Packets
        go in order.
        """

    def send_activations(self, packet: bytes) -> None:
        """Queue a packet for `s_axis_act`, likewise; whole beats."""

    def receive(self, beats: int) -> NDArray[np.int32]:
        """Wait for the next packet of `m_axis_out` and return it.

        Parameters
        ----------
        beats : int
            Beats that are expected; an error's packet has one.

        Raises
        ------
        TransportTimeout
            It did not come in time.
        """

    def drain(self) -> None:
        """Wait until every packet has been taken, and drop all results that come meanwhile.

        Raises
        ------
        TransportTimeout
            A packet was not taken in time.
        """


class Transport(Streams, Protocol):
    """Leads to an accelerator: its streams and its registers."""

    def read_register(self, offset: int) -> int:
        """Return the 32 bits at a byte address of the register map."""

    def write_register(self, offset: int, value: int) -> None:
        """Write 32 bits to a byte address of the register map."""


class MemoryMapped:
    """Transport over a mapped page of registers.

    Parameters
    ----------
    registers : np.ndarray of uint32
        The page, an element a register, as `map_registers` returns it.
    streams : Streams
        Moves the packets.
    """

    def __init__(self, registers: NDArray[np.uint32], streams: Streams) -> None:
        self._registers = registers
        self.send_weights = streams.send_weights
        self.send_activations = streams.send_activations
        self.receive = streams.receive
        self.drain = streams.drain

    def read_register(self, offset: int) -> int:
        """Return the 32 bits at a byte address of the register map."""
        return int(self._registers[offset // 4])

    def write_register(self, offset: int, value: int) -> None:
        """Write 32 bits to a byte address of the register map."""
        self._registers[offset // 4] = value


def map_registers(path: str, address: int = 0) -> NDArray[np.uint32]:
    """Map the page of registers.

    Parameters
    ----------
    path : str
        Device: `/dev/mem`, or `/dev/uio0` and the like.
    address : int
        Where the page lies in it: the core's base address, or 0.

    Returns
    -------
    np.ndarray of uint32, shape (1024,)
        The page; reading and writing an element is one access of 32 bits.

    Raises
    ------
    EgretError
        It cannot be opened or mapped.
    """
    try:
        device = os.open(path, os.O_RDWR | os.O_SYNC)
        try:
            page = mmap.mmap(device, 1 << ADDRESS_BITS, offset=address)
        finally:
            os.close(device)
    except (OSError, ValueError) as error:
        raise EgretError(f"{path}: cannot map the registers at {address:#x}: {error}") from error
    return np.frombuffer(page, np.uint32)


@dataclass(frozen=True)
class StoredPacket:
    """Packet of a stored image: its bus words."""

    data: bytes


@dataclass(frozen=True)
class StoredImage:
    """Image read from files; attributes as in `Image`."""

    params: AcceleratorParams
    setup: tuple[StoredPacket, ...]
    packets: tuple[StoredPacket, ...]


def read_image(path: str | Path, params: AcceleratorParams) -> StoredImage:
    """Read what `egret image` wrote.

    Parameters
    ----------
    path : str or Path
        The bytes (`.bin`); the list of packets lies beside them, as `.json`.
    params : AcceleratorParams
        What it was made for.

    Returns
    -------
    StoredImage

    Raises
    ------
    EgretError
        A file is missing, or is none, or they do not belong together.
    """
    path = Path(path)
    listing = path.with_suffix(".json")
    try:
        data = path.read_bytes()
        found = json.loads(listing.read_text(encoding="utf-8"))
    except OSError as error:
        raise EgretError(f"{error.filename}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EgretError(f"{listing}: not JSON: {error}") from error
    size = params.bus_bits // 8
    try:
        if found["bus_bits"] != params.bus_bits:
            raise EgretError(
                f"{listing}: bus_bits: found {found['bus_bits']}, expected {params.bus_bits}"
            )
        entries = found["setup"] + found["packets"]
        places = [(int(entry["first"]), int(entry["words"])) for entry in entries]
        setup = len(found["setup"])
    except (KeyError, TypeError, ValueError) as error:
        raise EgretError(f"{listing}: not a list of packets as `egret image` writes it") from error
    total = size * sum(words for _, words in places)
    if total != len(data):
        raise EgretError(
            f"{path}: found {len(data)} bytes, expected those of the packets in {listing.name}: "
            f"{total}"
        )
    packets = tuple(
        StoredPacket(data[first * size : (first + words) * size]) for first, words in places
    )
    return StoredImage(params, packets[:setup], packets[setup:])


@dataclass(frozen=True)
class _Step:
    """A packet of a pass.

    `columns` are those of the input that it takes; `sends`, how many packets of `beats` it sends;
    `is_last`, whether the first of these is of the last layer's raw results.
    """

    data: bytes
    columns: range
    sends: int
    beats: int
    is_last: bool


def _steps_of(image: Image) -> list[_Step]:
    """Read from the headers what each packet takes and sends."""
    steps: list[_Step] = []
    column = 0
    for packet in image.packets:
        header = int.from_bytes(packet.data[:MATRIX_BYTES], "little")

        def read(name: str, header: int = header) -> int:
            place = MATRIX_FIELDS[name]
            return header >> place.offset & ((1 << place.width) - 1)

        if read("kind") != PacketKind.MATRIX:
            steps.append(_Step(packet.data, range(0), 0, 0, is_last=False))
            continue
        # Tiles side by side take one part of the input after the other, and add to the same sums.
        stop = column + read("columns") if read("load_activations") else column
        steps.append(
            _Step(
                packet.data,
                range(column, stop),
                read("emit_results") + read("emit_activations"),
                read("rows") * image.params.batch,
                is_last=bool(read("emit_results")) and not read("keep_activations"),
            )
        )
        column = stop if read("more") else 0
    return steps


class Driver:
    """Runs images on an accelerator.

    Parameters
    ----------
    transport : Transport
        Leads to it.
    name : str
        What messages call it.

    Attributes
    ----------
    params : AcceleratorParams
        The accelerator's, as its registers tell.

    Raises
    ------
    EgretError
        There is no accelerator, or one for another version of the image.
    """

    def __init__(self, transport: Transport, name: str = "accelerator") -> None:
        self._transport = transport
        self._name = name
        self._steps: list[_Step] | None = None
        # Packets sent since the last reset: so many may hang.
        self._queued = 0
        found = self._read("ID")
        if found != CORE_ID:
            raise EgretError(f"{name}: register ID: found {found:#010x}, expected {CORE_ID:#010x}")
        version = self._field("VERSION", "image")
        if version != IMAGE_VERSION:
            raise EgretError(f"{name}: reads images of version {version}, expected {IMAGE_VERSION}")
        told = {
            register.name: self._read(register.name)
            for register in REGISTERS
            if register.name.startswith("PARAM_")
        }
        self.params = decode_params(told, name)

    def _read(self, register: str) -> int:
        return self._transport.read_register(register_named(register).offset)

    def _field(self, register: str, name: str) -> int:
        field = register_named(register).field(name)
        return (self._read(register) & field.mask) >> field.lsb

    def _order_reset(self) -> None:
        control = register_named("CONTROL")
        self._transport.write_register(control.offset, control.field("reset").mask)

    def soft_reset(self) -> None:
        """End an error or a run that hangs; the counters go to 0, and an image must be loaded anew.

        Works from any state, also when an earlier program was stopped amid a packet.

        Raises
        ------
        TransportTimeout
            The accelerator does not take what it should discard.
        """
        self._steps = None
        # A packet that hangs is discarded at a reset; those queued behind it follow.
        for _ in range(self._queued):
            try:
                self._transport.drain()
                break
            except TransportTimeout:
                self._order_reset()
        self._order_reset()
        # A reset discards a packet under way up to its end, which may never have been sent. The
        # first of these words is one; the second is surely an error, after which the accelerator
        # discards both streams, to the ends of these packets.
        word = bytes(self.params.bus_bits // 8)
        self._transport.send_weights(word)
        self._transport.send_weights(word)
        self._transport.send_activations(bytes(self.params.activation_bus_bits // 8))
        self._transport.drain()
        self._order_reset()
        self._transport.drain()
        self._queued = 0

    def load(self, image: Image) -> None:
        """Reset the accelerator softly and load an image's tables.

        Parameters
        ----------
        image : Image
            For example from `egret.image.build_image`.

        Raises
        ------
        EgretError
            It was made for other parameters.
        """
        for field in fields(AcceleratorParams):
            own, other = getattr(self.params, field.name), getattr(image.params, field.name)
            if field.name == "codes":
                own, other = tuple(sorted(own)), tuple(sorted(other))
            if own != other and field.name not in ("name", "vendor"):
                raise EgretError(
                    f"{self._name}: the image's parameter {field.name} is {other!r}, "
                    f"expected the accelerator's {own!r}"
                )
        self.soft_reset()
        for packet in image.setup:
            self._send_weights(packet.data)
        self._steps = _steps_of(image)

    def run(self, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        """Run inputs through the loaded network.

        Parameters
        ----------
        activations : np.ndarray of int8, shape (n, columns)
            Quantised inputs, n ≥ 1.

        Returns
        -------
        np.ndarray of int32, shape (n, rows)
            The last layer's raw results.

        Raises
        ------
        EgretError
            No image is loaded, the inputs do not fit it, or the accelerator reports an error, or
            answers otherwise than the image says; then an image must be loaded anew.
        TransportTimeout
            Results did not come in time; likewise.
        """
        if self._steps is None:
            raise EgretError(f"{self._name}: no image is loaded, expected load() before run()")
        features = max(step.columns.stop for step in self._steps)
        if (
            activations.dtype != np.int8
            or activations.ndim != 2
            or activations.shape[0] == 0
            or activations.shape[1] != features
        ):
            raise EgretError(
                f"{self._name}: activations: found {activations.dtype} of shape "
                f"{activations.shape}, expected int8 of shape (n, {features}), n >= 1"
            )
        batch = self.params.batch
        inputs = len(activations)
        passes = math.ceil(inputs / batch)
        padded = np.zeros((passes * batch, features), np.int8)
        padded[:inputs] = activations
        steps, self._steps = self._steps, None
        vectors = padded.reshape(passes, batch, features)
        results = []
        self._send_pass(steps, vectors[0])
        for number in range(passes):
            # The next pass waits at the accelerator while this one's results are taken.
            if number + 1 < passes:
                self._send_pass(steps, vectors[number + 1])
            results.append(self._receive_pass(steps))
        self._steps = steps
        return np.concatenate(results)[:inputs]

    def _send_weights(self, packet: bytes) -> None:
        self._transport.send_weights(packet)
        self._queued += 1

    def _send_pass(self, steps: list[_Step], vectors: NDArray[np.int8]) -> None:
        for step in steps:
            if step.columns:
                columns = vectors[:, step.columns.start : step.columns.stop]
                data = np.ascontiguousarray(columns.T).tobytes()
                # The last beat is filled up.
                data += bytes(-len(data) % (self.params.activation_bus_bits // 8))
                self._transport.send_activations(data)
            self._send_weights(step.data)

    def _receive_pass(self, steps: list[_Step]) -> NDArray[np.int32]:
        """Return the last layer's raw results, a row for each vector."""
        results = []
        for step in steps:
            for place in range(step.sends):
                try:
                    values = self._transport.receive(step.beats)
                except TransportTimeout as error:
                    self._raise_error()
                    raise TransportTimeout(f"{error}; {self._describe_streams()}") from error
                # An error's packet has one beat.
                if len(values) != step.beats or step.beats == 1:
                    self._raise_error()
                if len(values) != step.beats:
                    raise EgretError(
                        f"{self._name}: found a packet of {len(values)} results, expected "
                        f"{step.beats}"
                    )
                if step.is_last and place == 0:
                    results.append(values.reshape(-1, self.params.batch).T)
        return np.concatenate(results, axis=1)

    def _raise_error(self) -> None:
        """Raise what the accelerator reports, if it does."""
        kind = self._read("ERROR")
        if kind != ErrorKind.NONE:
            names = {each.value: each.name for each in ErrorKind}
            raise EgretError(
                f"{self._name}: reports {names.get(kind, kind)} at position "
                f"{self._read('POSITION')}, after {self._read('MATRICES')} matrices"
            )

    def _describe_streams(self) -> str:
        status = self._read("STATUS")
        return ", ".join(
            f"{field.name} {(status & field.mask) >> field.lsb}"
            for field in register_named("STATUS").fields
        )

    def counters(self) -> dict[str, int]:
        """Return the counters, by their registers' names in lower case.

        They count since the last reset, modulo 2^32.
        """
        return {register.name.lower(): self._read(register.name) for register in COUNTERS}
