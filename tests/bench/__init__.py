"""What ``effnet bench`` is made of: who is timed, in what order, what becomes of it, and what is refused."""
