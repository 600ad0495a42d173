"""Egret simulation: the golden model, the cocotb benches and their runners."""
