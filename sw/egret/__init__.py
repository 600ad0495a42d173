"""Egret: rate-constrained training, exp-Golomb packing, and the stream an accelerator eats."""
