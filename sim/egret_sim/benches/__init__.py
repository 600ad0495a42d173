"""cocotb benches; they run inside the simulator (see egret_sim.runner)."""
