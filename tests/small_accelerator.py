"""A small accelerator with interleaved parsers, whose compiled model tests share."""

from egret.params import AcceleratorParams

SMALL = AcceleratorParams(
    name="faults",
    lanes=2,
    parser_bits=4,
    parser_cut=2,
    bus_bits=32,
    batch=2,
    codes=("eg-k", "eg-run"),
    map_depth=64,
    activation_depth=64,
    row_depth=64,
    input_depth=2,
    block_depth=2,
)
