"""Formal proofs of the components, run by `make formal` (docs/verification.md)."""
