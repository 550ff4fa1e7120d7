// Copies from global to shared memory that run while the block computes: cp.async from sm_80 on, plain before.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "common/cuda/vec.cuh"

#if defined(__CUDA_ARCH__)
#define EK_ASYNC_COPY (__CUDA_ARCH__ >= 800)
#elif !defined(EK_ASYNC_COPY)
#define EK_ASYNC_COPY 1
#endif

namespace effnet_kernels::cuda {

// One vector, or those of its elements that exist.
template <class T>
EK_DEVICE void copy(T* shared, const T* global, Lanes lanes) {
  if (lanes.whole) {
#if EK_ASYNC_COPY
    __pipeline_memcpy_async(shared, global, 16);
#else
    store_shared(reinterpret_cast<uint4*>(shared), __ldca(reinterpret_cast<const uint4*>(global)));
#endif
    return;
  }
#pragma unroll 1
  for (int i = lanes.first; i < lanes.last; ++i) store_shared(shared + i, load_one(global + i));
}

// The copies so far are one batch.
EK_DEVICE void end_batch() {
#if EK_ASYNC_COPY
  __pipeline_commit();
#endif
}

// This thread's batches but the newest have arrived; a barrier makes them visible to the block.
EK_DEVICE void wait_for_all_but_newest() {
#if EK_ASYNC_COPY
  __pipeline_wait_prior(1);
#endif
}

}  // namespace effnet_kernels::cuda
