"""Defaults that the command line shows before anything large is imported."""

from pathlib import Path

ROUNDS = 15
PAGE = Path("docs/performance.md")
RESULTS = Path("benchmarks/results")
