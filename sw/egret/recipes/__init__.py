"""Shipped trainings, each on data that comes with a package."""
