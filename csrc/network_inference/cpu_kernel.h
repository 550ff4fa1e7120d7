// The mean over an image's pixels (cpu.h): reads x once, sums in float32, in registers.
// Included per instruction set by foreach_capability.h.
#include "common/cpu/inference.h"

template <class T>
void mean_of_pixels(const PoolInferenceParams& p, int64_t begin, int64_t end) {
  constexpr int64_t size = Vec<float>::size;
  const Vec<float> count = Vec<float>::broadcast(float(p.pixels));
  for (int64_t n = begin; n < end; ++n) {
    const T* const image = static_cast<const T*>(p.x) + n * p.pixels * p.channels;
    T* const out = static_cast<T*>(p.out) + n * p.channels;
    const auto reduce = [&](int64_t c, auto lanes) {
      Vec<float> sum = Vec<float>::zero();
      for (int64_t i = 0; i < p.pixels; ++i) sum += load(image + i * p.channels + c, lanes);
      store(out + c, sum / count, lanes);
    };
    int64_t c = 0;
    for (; c + size <= p.channels; c += size) reduce(c, AllLanes{});
    if (c < p.channels) reduce(c, int(p.channels - c));
  }
}

inline void pool_images(const PoolInferenceParams& p, int64_t begin, int64_t end) {
  dispatch_float32_storage(p.dtype, [&](auto type) { mean_of_pixels<typename decltype(type)::type>(p, begin, end); });
}
