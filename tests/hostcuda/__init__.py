"""A runtime that executes CUDA kernel sources on the CPU; include/hostcuda.h says what it is and what it is not."""
