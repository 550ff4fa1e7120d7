// Depthwise convolution of rows in scratch memory: one vector of channels, pixel after pixel, with zero margins.
// Included per instruction set by foreach_capability.h.

// The rows of one block of channels that the convolution still needs. Row y is at y % rows; one more row stays zero and
// stands for those above and below the image. Every vector of channels has a plane of its own, so that the rows a tap
// slides over are in one piece.
struct RowRing {
  const DepthwiseShape& s;
  int64_t strip;      // rows of output that are computed from one filling
  int64_t rows;       // of input, without the zero row
  int64_t positions;  // pixels of a row with its margins

  static RowRing make(const DepthwiseShape& s, int64_t vectors) {
    constexpr int64_t kElements = 49152;  // 192 KiB: a fraction of L2, beside the weights and x
    const int64_t positions = std::max((s.out_width - 1) * s.stride + s.kernel_size, s.left + s.width);
    const int64_t fit = kElements / (positions * vectors * Vec<float>::size);
    const int64_t strip = std::clamp<int64_t>((fit - s.kernel_size) / s.stride + 1, 1, s.out_height);
    return {s, strip, (strip - 1) * s.stride + s.kernel_size, positions};
  }
  int64_t row_size() const { return positions * Vec<float>::size; }
  int64_t plane_size() const { return (rows + 1) * row_size(); }
  int64_t at(int64_t y) const { return (y < 0 || y >= s.height ? rows : y % rows) * row_size(); }
  // Zeros beside every row, and in the zero row; the rest of a plane is written before it is read.
  void clear_margins(float* plane) const {
    for (int64_t y = 0; y < rows; ++y) {
      float* const row = plane + y * row_size();
      std::fill_n(row, s.left * Vec<float>::size, 0.0f);
      std::fill(row + (s.left + s.width) * Vec<float>::size, row + row_size(), 0.0f);
    }
    std::fill_n(plane + rows * row_size(), row_size(), 0.0f);
  }
  // Where a pixel of the image goes.
  int64_t pixel(int64_t y, int64_t x) const { return at(y) + (s.left + x) * Vec<float>::size; }
};

// epilogue(x + r, bias + Σ weight · source) for R neighbouring outputs, kept in registers over all taps.
template <int K, int S, int R, class Epilogue>
EK_INLINE void depthwise_tile(const float* const (&rows)[K], int64_t x, const float* weight, int64_t weight_step,
                              Vec<float> bias, Epilogue& epilogue) {
  constexpr int size = Vec<float>::size;
  Vec<float> sums[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r] = bias;
  for (int ky = 0; ky < K; ++ky) {
    const float* const source = rows[ky] + x * S * size;
#pragma GCC unroll 8
    for (int kx = 0; kx < K; ++kx) {
      const Vec<float> w = load(weight + (ky * K + kx) * weight_step, AllLanes{});
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r] += w * load(source + (r * S + kx) * size, AllLanes{});
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) epilogue(x + r, sums[r]);
}

template <class F>
void dispatch_kernel_and_stride(int kernel_size, int stride, F f) {
  const auto with_stride = [&](auto kernel) { stride == 1 ? f(kernel, Constant<1>{}) : f(kernel, Constant<2>{}); };
  if (kernel_size == 3) {
    with_stride(Constant<3>{});
  } else if (kernel_size == 5) {
    with_stride(Constant<5>{});
  } else {
    with_stride(Constant<7>{});
  }
}
