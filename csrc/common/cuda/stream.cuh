// One block's walk over its part of an activation tensor, and its channels' constants: what the streaming kernels share.
#pragma once

#include "batch_norm_act/plan.h"
#include "common/cuda/launch.h"
#include "common/cuda/reduce.cuh"
#include "common/cuda/vec.cuh"

namespace effnet_kernels::cuda {

// At least four blocks of 256 threads on a multiprocessor: 64 registers a thread, half of all threads and more.
inline constexpr int kStreamThreads = 256, kStreamBlocks = 4;

template <class T, Layout layout>
struct Walk {
  static constexpr int kVec = kVector<T>;
  // Channels that one thread sees: those of its vector, or the one of its plane.
  static constexpr int kChannels = layout == Layout::nhwc ? kVec : 1;

  const StreamPlan& plan;
  int64_t part, image;
  int64_t first_channel;  // of the block
  int thread, x, y;
  int own;             // the thread's first channel within the block
  int64_t begin, end;  // the chunk's pixels

  EK_DEVICE explicit Walk(const StreamPlan& p) : plan(p) {
    part = int64_t(blockIdx.x) / p.slices;
    image = part / p.chunks;
    first_channel = int64_t(blockIdx.x) % p.slices * p.width(kVec);
    thread = int(threadIdx.x);
    x = thread % p.across;
    y = thread / p.across;
    own = layout == Layout::nhwc ? x * kVec : y;
    begin = part % p.chunks * p.chunk_pixels;
    end = begin + p.chunk_pixels < p.pixels ? begin + p.chunk_pixels : p.pixels;
  }

  // f(i, channel) for every channel of the block, i counting from 0, each by one thread.
  template <class F>
  EK_DEVICE void each_channel(F f) const {
    const int64_t rest = plan.channels - first_channel;
    for (int i = thread; i < plan.width(kVec) && i < rest; i += plan.threads()) f(i, first_channel + i);
  }

  // f(offset, lanes) for every vector of the thread.
  template <class F>
  EK_DEVICE void each_vector(F f) const {
    const int64_t channel = first_channel + own;
    if (channel >= plan.channels) return;
    if constexpr (layout == Layout::nhwc) {
      const int64_t rest = plan.channels - channel;
      const Lanes lanes = lanes_of<T>(0, rest < kVec ? int(rest) : kVec, plan.aligned);
      int64_t at = (image * plan.pixels + begin + y) * plan.channels + channel;
      const int64_t step = plan.down * plan.channels;
#pragma unroll 1
      for (int left = int(end - begin) - y; left > 0; left -= plan.down, at += step) f(at, lanes);
    } else {
      const int64_t plane = (image * plan.channels + channel) * plan.pixels;
      const int64_t from = plane + begin, to = plane + end, step = int64_t(plan.across) * kVec;
#pragma unroll 1
      for (int64_t at = from - from % kVec + x * kVec; at < to; at += step) {
        const int first = at < from ? int(from - at) : 0;
        const int last = to - at < kVec ? int(to - at) : kVec;
        f(at, lanes_of<T>(first, last, plan.aligned));
      }
    }
  }

  // The threads that saw the same channels as this one, for reduce(); the first of them is `leader`.
  EK_DEVICE int stride() const { return layout == Layout::nhwc ? plan.across : 1; }
  EK_DEVICE int count() const { return layout == Layout::nhwc ? plan.down : plan.across; }
  EK_DEVICE bool leader() const { return layout == Layout::nhwc ? y == 0 : x == 0; }
  // f(i, channel) for every channel that the thread sees.
  template <class F>
  EK_DEVICE void each_own_channel(F f) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int64_t channel = first_channel + own + i;
      if (channel < plan.channels) f(i, channel);
    }
  }
};

// Per-channel constants of a block in shared memory: `kConstants` rows of Walk's width.
template <int kConstants>
struct Table {
  float* values;
  int width;

  EK_DEVICE void set(int constant, int i, float value) { store_shared(values + constant * width + i, value); }
  // Of the thread's vector element j.
  template <class W>
  EK_DEVICE float get(const W& walk, int constant, int j) const {
    return load_shared(values + constant * width + walk.own + (W::kChannels > 1 ? j : 0));
  }
  EK_DEVICE float* after() const { return values + (kConstants * width + 3) / 4 * 4; }
};

EK_HOST_DEVICE constexpr int table_bytes(int constants, int width) {
  return (constants * width + 3) / 4 * 4 * int(sizeof(float));
}

// A kernel of the streaming kind: one block per part and slice. `constants` per channel are in its table; `sums` per
// channel are reduced at once, or a count and −sums per channel.
template <class Params, class Kernel>
cudaError_t launch_stream(const char* name, const Params& p, int constants, Kernel kernel, int sums,
                          cudaStream_t stream) {
  return dispatch_activation_dtype(p.dtype, [&](auto type) {
    return dispatch_layout(p.plan.layout, [&](auto layout) {
      using T = typename decltype(type)::type;
      constexpr int kChannels = Walk<T, layout()>::kChannels;
      const int values = sums < 0 ? 1 - sums * kChannels : sums * kChannels;
      const int bytes = table_bytes(constants, p.plan.width(kVector<T>)) + reduce_bytes(values, p.plan.threads());
      return launch(name, kernel(type, layout), {p.plan.blocks(), p.plan.threads(), bytes}, p, stream);
    });
  });
}

}  // namespace effnet_kernels::cuda
