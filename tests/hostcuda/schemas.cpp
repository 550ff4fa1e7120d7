// The operators' schemas once more, under a name of their own: there the CUDA sources register what runs on CPU tensors.
#define effnet_kernels effnet_hostcuda
#include "ops.cpp"
