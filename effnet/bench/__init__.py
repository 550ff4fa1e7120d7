"""``effnet bench`` and ``pytest benchmarks/``: rivals and fused operators side by side, verified, then timed."""
