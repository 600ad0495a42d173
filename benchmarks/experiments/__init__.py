"""The training experiments: the paper's tables and figures in our models, and what goes past them.

`python -m benchmarks.experiments --help` says how to run one; docs/experiments.md has the results.
"""
