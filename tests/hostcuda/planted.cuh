// Kernels for the tests of the runtime: some right, and some with one bug each, which the runtime has to see.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

namespace planted {

inline constexpr unsigned kAllLanes = ~0u;
inline constexpr int kTile = 32;

__device__ inline int thread_number() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

template <typename T>
__device__ T* dynamic_shared() {
  return static_cast<T*>(hostcuda::dynamic_shared());
}

// out = inᵀ, n by n, blocks of (32, 8).
template <bool synchronised>
__global__ void __launch_bounds__(256) transpose(const float* __restrict__ in, float* __restrict__ out, int n) {
  __shared__ float tile[kTile][kTile + 1];
  const int column = blockIdx.x * kTile + threadIdx.x, row = blockIdx.y * kTile + threadIdx.y;
  for (int j = 0; j < kTile; j += blockDim.y) {
    if (column < n && row + j < n) tile[threadIdx.y + j][threadIdx.x] = __ldg(in + (row + j) * n + column);
  }
  if constexpr (synchronised) __syncthreads();
  const int out_column = blockIdx.y * kTile + threadIdx.x, out_row = blockIdx.x * kTile + threadIdx.y;
  for (int j = 0; j < kTile; j += blockDim.y) {
    if (out_column < n && out_row + j < n)
      __stcs(out + (out_row + j) * n + out_column, tile[threadIdx.x][threadIdx.y + j]);
  }
}

// out[block] = the sum of the block's part of in; n is divisible by 4. Dynamic shared memory for a float per warp.
__global__ void block_sum(const float* __restrict__ in, float* __restrict__ out, int n) {
  float* per_warp = dynamic_shared<float>();
  float sum = 0.0f;
  if (4 * thread_number() < n) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(in) + thread_number());
    sum = four.x + four.y + four.z + four.w;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (threadIdx.x % 32 == 0) per_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum += per_warp[warp];
    __stcg(out + blockIdx.x, sum);
  }
}

// Rows of 32 lanes: every shuffle and vote, in groups of n lanes.
__global__ void warp_operations(const float* __restrict__ in, float* __restrict__ out, int n) {
  const int lane = threadIdx.x;
  const float value = __ldca(in + lane);
  const float rows[] = {
      __shfl_sync(kAllLanes, value, lane + 3, n),
      static_cast<float>(__shfl_up_sync(kAllLanes, static_cast<int>(value), 2, n)),
      static_cast<float>(__shfl_down_sync(kAllLanes, static_cast<double>(value), 3, n)),
      static_cast<float>(__shfl_xor_sync(kAllLanes, static_cast<unsigned>(value), 5, n)),
      static_cast<float>(__popc(__ballot_sync(kAllLanes, lane < n))),
      static_cast<float>(__ffs(static_cast<int>(__ballot_sync(kAllLanes, lane >= n / 2)))),
      static_cast<float>(__any_sync(kAllLanes, lane == n)),
      static_cast<float>(__all_sync(kAllLanes, lane < n)),
  };
  for (int row = 0; row < 8; ++row) __stwb(out + row * warpSize + lane, rows[row]);
}

// The two halves of a warp do different things at once, and meet again.
__global__ void warp_halves(const float* __restrict__ in, float* __restrict__ out, int) {
  const int lane = threadIdx.x;
  float value = __ldcg(in + lane);
  if (lane < 16) {
    value += __shfl_down_sync(0x0000ffffu, value, 1, 16);
  } else {
    for (int i = 0; i < 3; ++i) value = __shfl_xor_sync(0xffff0000u, value, 1);
  }
  __syncwarp();
  value += __shfl_sync(kAllLanes, value, 31 - lane);
  __stwb(out + lane, value);
}

// out = 2 in through two buffers of shared memory, of which one is filled while the other is read. The last copies end
// with zeros. Blocks of any size; n is divisible by 4 and may end within a block's part.
template <int waits>
__global__ void pipelined(const float* __restrict__ in, float* __restrict__ out, int n) {
  float4* stages = dynamic_shared<float4>();
  const int steps = (n / 4 + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const auto issue = [&](int step) {
    const int i = step * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
    const bool inside = step < steps && 4 * i < n;
    __pipeline_memcpy_async(stages + (step % 2) * blockDim.x + threadIdx.x, reinterpret_cast<const float4*>(in) + i, 16,
                            inside ? 0 : 16);
    __pipeline_commit();
  };
  issue(0);
  for (int step = 0; step < steps; ++step) {
    issue(step + 1);
    if (waits >= 0) __pipeline_wait_prior(waits);
    __syncthreads();
    // Another thread's copy: the barrier is needed.
    const unsigned other = blockDim.x - 1 - threadIdx.x;
    const float4 four = stages[(step % 2) * blockDim.x + other];
    const int i = step * static_cast<int>(blockDim.x) + static_cast<int>(other);
    if (4 * i < n) {
      __stcs(reinterpret_cast<float4*>(out) + i, make_float4(2 * four.x, 2 * four.y, 2 * four.z, 2 * four.w));
    }
    __syncthreads();
  }
}

// out = in rounded to half for even elements, and to bfloat16 for odd ones.
__global__ void rounded(const float* __restrict__ in, float* __restrict__ out, int n) {
  const int i = thread_number();
  if (i >= n) return;
  const float value = __ldcs(in + i);
  __stwb(out + i, i % 2 == 0 ? __half2float(__float2half_rn(value)) : __bfloat162float(__float2bfloat16_rn(value)));
}

// A different shared array for every instantiation, and one byte of every thread that nobody writes.
template <int length>
__global__ void uninitialised(const float*, float* __restrict__ out, int) {
  __shared__ __align__(16) float fixed[length];
  float* flexible = dynamic_shared<float>();
  if (threadIdx.x == 0) fixed[0] = flexible[0] = 1.0f;
  __syncthreads();
  __stwb(out + threadIdx.x, fixed[threadIdx.x % length]);
  __stwb(out + blockDim.x + threadIdx.x, flexible[threadIdx.x]);
}

__global__ void read_past(const float* __restrict__ in, float* __restrict__ out, int n) {
  const int i = thread_number();
  if (i <= n) __stwb(out, __ldg(in + i));
}

__global__ void write_past(const float*, float* __restrict__ out, int n) {
  const int i = thread_number();
  if (i <= n) __stwb(out + i, 0.0f);
}

__global__ void write_input(const float* in, float*, int) { __stwb(const_cast<float*>(in) + threadIdx.x, 0.0f); }

__global__ void misaligned_global(const float* in, float* out, int) {
  __stwb(reinterpret_cast<float4*>(out), __ldg(reinterpret_cast<const float4*>(in + 1)));
}

__global__ void misaligned_shared(const float*, float* out, int) {
  const auto* four = reinterpret_cast<const float4*>(dynamic_shared<float>() + 2);
  hostcuda::check_shared(four, sizeof(float4));
  __stwb(out, four->x);
}

__global__ void shared_read_past(const float*, float* out, int n) {
  const float* value = dynamic_shared<float>() + n;
  hostcuda::check_shared(value, sizeof(float));
  __stwb(out, *value);
}

__global__ void shared_write_past(const float*, float*, int n) {
  if (threadIdx.x == 0) dynamic_shared<float>()[n] = 0.0f;
}

__global__ void early_return(const float*, float* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  __syncthreads();
  __stwb(out + threadIdx.x, 0.0f);
}

__global__ void barrier_in_branch(const float*, float* out, int n) {
  if (static_cast<int>(threadIdx.x) < n) {
    __syncthreads();
  } else {
    __stwb(out + threadIdx.x, 0.0f);
    __syncthreads();
  }
}

__global__ void barrier_against_warp(const float*, float*, int n) {
  if (static_cast<int>(threadIdx.x) < n) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void missing_lane(const float*, float* out, int n) {
  float value = 1.0f;
  if (static_cast<int>(threadIdx.x) != n) value = __shfl_xor_sync(kAllLanes, value, 1);
  __stwb(out + threadIdx.x, value);
}

__global__ void inactive_lane(const float*, float* out, int n) {
  if (threadIdx.x < 16) __stwb(out + threadIdx.x, __shfl_sync(0x0000ffffu, 1.0f, n));
}

__global__ void unnamed_lane(const float*, float*, int) { __syncwarp(0x0000fffeu); }

}  // namespace planted
