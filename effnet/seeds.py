"""Seeds made of seeds."""

import numpy as np


def mixed_seed(*parts: int) -> int:
    """One 64-bit seed from several numbers, unrelated to that of their neighbours."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
