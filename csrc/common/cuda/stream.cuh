// One block's walk over its part of an activation tensor, and its channels' constants: what the streaming kernels share.
#pragma once

#include "batch_norm_act/plan.h"
#include "common/cuda/launch.h"
#include "common/cuda/reduce.cuh"
#include "common/cuda/vec.cuh"

namespace effnet_kernels::cuda {

// Four blocks of 256 threads on a multiprocessor: 64 registers a thread, half of all threads and more. sm_75 has room for
// four blocks at the most and is given three, for 85.
inline constexpr int kStreamThreads = 256;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr int kStreamBlocks = 3;
#else
inline constexpr int kStreamBlocks = 4;
#endif

template <class T, Layout layout>
struct Walk {
  static constexpr int kVec = kVector<T>;
  // Channels that one thread sees: those of its vector, or the one of its plane.
  static constexpr int kChannels = layout == Layout::nhwc ? kVec : 1;

  const StreamPlan& plan;
  int part, image;
  int64_t image_offset;  // in elements; within an image offsets are 32-bit
  int channels, pixels;
  int first_channel;  // of the block
  int thread, x, y;
  int own;         // the thread's first channel within the block
  int begin, end;  // the chunk's pixels

  EK_DEVICE explicit Walk(const StreamPlan& p) : plan(p), channels(int(p.channels)), pixels(int(p.pixels)) {
    const int block = int(blockIdx.x), slices = int(p.slices), chunks = int(p.chunks);
    const int chunk_pixels = int(p.chunk_pixels);
    part = block / slices;
    image = part / chunks;
    image_offset = image * (p.channels * p.pixels);
    first_channel = block % slices * p.width(kVec);
    thread = int(threadIdx.x);
    x = thread % p.across;
    y = thread / p.across;
    own = layout == Layout::nhwc ? x * kVec : y;
    begin = part % chunks * chunk_pixels;
    end = pixels - begin < chunk_pixels ? pixels : begin + chunk_pixels;
  }

  // Element `at` of the block's image.
  EK_DEVICE const T* in(const void* tensor, int64_t at) const {
    return static_cast<const T*>(tensor) + (image_offset + at);
  }
  EK_DEVICE T* out(void* tensor, int64_t at) const { return static_cast<T*>(tensor) + (image_offset + at); }

  // f(i, channel) for every channel of the block, i counting from 0, each by one thread.
  template <class F>
  EK_DEVICE void each_channel(F f) const {
    const int rest = channels - first_channel;
    for (int i = thread; i < plan.width(kVec) && i < rest; i += plan.threads()) f(i, first_channel + i);
  }

  // f(offset in the image, lanes) for every vector of the thread.
  template <class F>
  EK_DEVICE void each_vector(F f) const {
    const int channel = first_channel + own;
    if (channel >= channels) return;
    if constexpr (layout == Layout::nhwc) {
      const int rest = channels - channel;
      const Lanes lanes = lanes_of<T>(0, rest < kVec ? rest : kVec, plan.aligned);
      // Unsigned: the last step may leave the image by more than an int holds.
      const uint32_t step = uint32_t(plan.down) * channels, limit = uint32_t(end) * channels;
#pragma unroll 1
      for (uint32_t at = uint32_t(begin + y) * channels + channel; at < limit; at += step) f(at, lanes);
    } else {
      const int from = channel * pixels + begin, to = channel * pixels + end, step = plan.across * kVec;
      const int misaligned = int((uint32_t(image_offset) + uint32_t(from)) % kVec);
#pragma unroll 1
      for (int at = from - misaligned + x * kVec; at < to; at += step) {
        const int first = at < from ? from - at : 0;
        const int last = to - at < kVec ? to - at : kVec;
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
      const int channel = first_channel + own + i;
      if (channel < channels) f(i, channel);
    }
  }
};

// Per-channel constants of a block in shared memory, one row each. The rows are as long as the widest block's channels,
// so that a thread finds all of its constants from one address.
template <int kConstants>
struct Table {
  static constexpr int kWidth = 256;
  static constexpr int kBytes = kConstants * kWidth * int(sizeof(float));
  float* values;

  EK_DEVICE void set(int constant, int i, float value) { store_shared(values + constant * kWidth + i, value); }
  // Of the thread's vector element j.
  template <class W>
  EK_DEVICE float get(const W& walk, int constant, int j) const {
    static_assert(32 * W::kVec <= kWidth && kStreamThreads <= kWidth);
    return load_shared(values + constant * kWidth + walk.own + (W::kChannels > 1 ? j : 0));
  }
  EK_DEVICE float* after() const { return values + kConstants * kWidth; }
};

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
      const int bytes = constants * Table<1>::kBytes + reduce_bytes(values, p.plan.threads());
      return launch(name, kernel(type, layout), {p.plan.blocks(), p.plan.threads(), bytes}, p, stream);
    });
  });
}

}  // namespace effnet_kernels::cuda
