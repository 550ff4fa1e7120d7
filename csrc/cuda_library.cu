// The CUDA library's registration: each operator's cuda.cu adds its kernels to the schemas of ops.cpp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CUDA, m) {}
