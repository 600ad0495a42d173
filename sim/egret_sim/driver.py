"""Simulated transport: `egret_hw.driver.Driver` on the Verilated accelerator."""

import socket
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.params import AcceleratorParams
from egret_hw.driver import TransportTimeout
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.runner import run_bench

__all__ = ["SimulatedTransport"]

_BENCH = "egret_sim.benches.driver"
_POLL_SECONDS = 0.2


class SimulatedTransport:
    """Runs an accelerator in Verilator while a program talks to it.

    Simulated time passes only in calls. A context manager: leaving it ends the simulation.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    verilog : str, optional
        Its Verilog; generated when absent.
    timeout : int
        Clock cycles without a result, or a packet being taken, after which a call gives up.
    pause : str
        Pattern of pauses on every channel of every port, a key of
        `egret_sim.benches.accelerator.PAUSES`.
    seed : int
        Seed of random pauses.

    Raises
    ------
    EgretError
        The model could not be built or run.
    """

    def __init__(
        self,
        params: AcceleratorParams,
        *,
        verilog: str | None = None,
        timeout: int = 100_000,
        pause: str = "none",
        seed: int = 1,
    ) -> None:
        text = generate_verilog(params) if verilog is None else verilog
        self._name = top_name(params)
        self._failure: BaseException | None = None
        with tempfile.TemporaryDirectory(prefix="egret-") as folder:
            address = str(Path(folder) / "socket")
            job = {
                "address": address,
                "timeout": timeout,
                "batch": params.batch,
                "pause": pause,
                "seed": seed,
            }
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(address)
                listener.listen(1)
                listener.settimeout(_POLL_SECONDS)
                self._thread = threading.Thread(
                    target=self._simulate, args=(text, job, seed), daemon=True
                )
                self._thread.start()
                self._connection = self._accept(listener)

    def _simulate(self, verilog: str, job: dict[str, Any], seed: int) -> None:
        try:
            run_bench(verilog, self._name, _BENCH, job, seed=seed)
        except EgretError as error:
            self._failure = error

    def _accept(self, listener: socket.socket) -> Connection:
        while True:
            try:
                connected, _ = listener.accept()
                connected.setblocking(True)
                return Connection(connected.detach())
            except TimeoutError:
                if not self._thread.is_alive():
                    self._end()

    def _end(self) -> None:
        self._thread.join()
        raise EgretError(f"{self._name}: the simulation has ended") from self._failure

    def _call(self, operation: str, *arguments: object) -> Any:
        try:
            self._connection.send((operation, arguments))
            in_time, answer = self._connection.recv()
        except (OSError, EOFError):
            self._end()
        if not in_time:
            raise TransportTimeout(f"{self._name}: {operation}: {answer}")
        return answer

    def read_register(self, offset: int) -> int:
        """Return the 32 bits at a byte address of the register map.

        Raises
        ------
        EgretError
            The slave answers with an error.
        """
        value, response = self._call("read_register", offset)
        self._check(response, f"a read of {offset:#05x}")
        return int(value)

    def write_register(self, offset: int, value: int) -> None:
        """Write 32 bits to a byte address of the register map.

        Raises
        ------
        EgretError
            The slave answers with an error.
        """
        self._check(self._call("write_register", offset, value), f"a write to {offset:#05x}")

    def _check(self, response: str, what: str) -> None:
        if response != "OKAY":
            raise EgretError(f"{self._name}: {what}: answered with {response}, expected OKAY")

    def send_weights(self, packet: bytes) -> None:
        """Queue a packet for `s_axis_weight`."""
        self._call("send_weights", packet)

    def send_activations(self, packet: bytes) -> None:
        """Queue a packet for `s_axis_act`."""
        self._call("send_activations", packet)

    def receive(self, beats: int) -> NDArray[np.int32]:
        """Return the next packet of `m_axis_out`, whatever its length."""
        return np.frombuffer(self._call("receive"), "<i4").copy()

    def drain(self) -> None:
        """Wait until every packet has been taken, and drop all results that come meanwhile."""
        self._call("drain")

    def close(self) -> None:
        """End the simulation.

        Raises
        ------
        EgretError
            It had failed.
        """
        if self._connection.closed:
            return
        with suppress(OSError):
            self._connection.send(("close", ()))
        self._connection.close()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> "SimulatedTransport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
