"""Egret hardware: Amaranth components of the accelerator and RTL generation."""
