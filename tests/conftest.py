"""What every session of pytest shows first."""

from tests.run_options import SEED

from egret_sim.runner import chosen_simulator


def pytest_report_header() -> str:
    return f"benches: {chosen_simulator()}, seed {SEED} (EGRET_SEED)"
