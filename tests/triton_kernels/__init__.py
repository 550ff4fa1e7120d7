"""The Triton kernels in Triton's interpreter: parity, gradients, edge cases, bytes, and a training run."""
