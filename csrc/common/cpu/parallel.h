// PyTorch's thread pool, with the grain in elements.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace effnet_kernels::cpu {

// f(begin, end) over [0, items), each item touching about `elements_per_item` elements.
template <class F>
void parallel_over(int64_t items, int64_t elements_per_item, const F& f) {
  constexpr int64_t kElementsPerThread = 32768;  // below this a thread costs more than it saves
  if (items == 0) return;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_item));
  torch::stable::parallel_for(0, items, grain, f);
}

}  // namespace effnet_kernels::cpu
