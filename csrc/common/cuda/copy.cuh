// Copies from global to shared memory that run while the block computes: cp.async from sm_80 on. Before that CUDA's
// primitives are, at compile time, plain loads and stores, done when they are issued.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "common/cuda/vec.cuh"

namespace effnet_kernels::cuda {

// One vector, or those of its elements that exist.
template <class T>
EK_DEVICE void copy(T* shared, const T* global, Lanes lanes) {
  if (lanes.whole) {
    __pipeline_memcpy_async(shared, global, 16);
    return;
  }
#pragma unroll 1
  for (int i = lanes.first < 0 ? 0 : lanes.first; i < lanes.last; ++i) store_shared(shared + i, load_one(global + i));
}

// The copies so far are one batch.
EK_DEVICE void end_batch() { __pipeline_commit(); }

// This thread's batches but the newest have arrived; a barrier makes them visible to the block.
EK_DEVICE void wait_for_all_but_newest() { __pipeline_wait_prior(1); }

}  // namespace effnet_kernels::cuda
