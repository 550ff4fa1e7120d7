"""The operators' tests over the CUDA kernels, which the host runtime in ``hostcuda`` runs on CPU tensors."""
