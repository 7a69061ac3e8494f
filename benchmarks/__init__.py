"""Benchmarks against the originals: `python -m benchmarks.NAME [--reference DIR] [--json FILE]`."""
