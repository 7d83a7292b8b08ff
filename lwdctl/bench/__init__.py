"""Benchmarks against the library code that lwdctl replaces, and FLOPs of every network size."""
