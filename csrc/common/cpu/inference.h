// What the inference kernels share: storage by dtype, products into scratch memory and from there to the output, and
// activations as functions of a vector.
// Included per instruction set by foreach_capability.h.
#include "common/cpu/gemm.h"

template <Activation activation>
struct Activate {
  EK_INLINE Vec<float> operator()(Vec<float> v) const { return activate<activation>(v); }
};

// identity, relu and relu6, which are compiled once.
struct Clamp {
  float low, high;
  EK_INLINE Vec<float> operator()(Vec<float> v) const { return clamp(v, low, high); }
};

// f(function of a vector) for the activations that follow a BatchNorm.
template <class F>
void dispatch_inference_activation(Activation activation, F f) {
  constexpr float kInfinity = __builtin_inff();
  switch (activation) {
    case Activation::silu:
      return f(Activate<Activation::silu>{});
    case Activation::hardswish:
      return f(Activate<Activation::hardswish>{});
    case Activation::relu:
      return f(Clamp{0, kInfinity});
    case Activation::relu6:
      return f(Clamp{0, 6});
    default:
      return f(Clamp{-kInfinity, kInfinity});
  }
}

// f(Type<T>) for the dtypes whose arithmetic is in float32.
template <class F>
EK_INLINE void dispatch_float32_storage(DType dtype, F f) {
#ifndef EK_BFLOAT16_INSTRUCTIONS  // with them there is nothing else
  if (dtype == DType::float16) return f(Type<Half>{});
  if (dtype == DType::float32) return f(Type<float>{});
#endif
  f(Type<BFloat16>{});
}

// f(Type<T>) for what products multiply.
template <class F>
void dispatch_product(bool bfloat16, F f) {
#ifndef EK_BFLOAT16_INSTRUCTIONS
  if (!bfloat16) return f(Type<float>{});
#endif
  f(Type<BFloat16>{});
}

// An element of a product whose matrices hold T, and how many values it is.
template <class T>
using product_element_t = std::conditional_t<std::is_same_v<T, BFloat16>, BFloat16Pair, T>;
template <class T>
inline constexpr int64_t kProductValues = sizeof(product_element_t<T>) / sizeof(T);

// Rows of `depth` values at offset(k), times `packed`, into rows of float.
template <class T, class Offset>
void product_into(const T* a, int64_t a_row, Offset offset, int64_t rows, const void* packed, int64_t depth,
                  int64_t columns, float* out, int64_t out_row) {
  using E = product_element_t<T>;
  constexpr int64_t n = kProductValues<T>;
  multiply_rows_at(reinterpret_cast<const E*>(a), a_row / n, offset, rows, static_cast<const E*>(packed), depth / n,
                   columns, [out, out_row](int64_t row, int64_t column, Vec<float> sum, auto) {
                     store(out + row * out_row + column, sum, AllLanes{});
                   });
}

// A product's rows on their way to memory: out = act(sums + bias) (+ residual).
struct FinishParams {
  const float* sums;
  int64_t sums_row, rows, columns;
  const float* bias;
  const void* residual;  // laid out like out, or null
  void* out;
  int64_t out_row, start;  // the first element of out and residual
};

template <class T, class Act>
void finish_rows(const FinishParams& p, Act act) {
  constexpr int size = Vec<float>::size;
  for (int64_t row = 0; row < p.rows; ++row) {
    const float* const sums = p.sums + row * p.sums_row;
    const int64_t at = p.start + row * p.out_row;
    T* const out = static_cast<T*>(p.out) + at;
    const T* const residual = p.residual ? static_cast<const T*>(p.residual) + at : nullptr;
    const auto finish = [&](int64_t c, auto lanes) {
      const Vec<float> v = act(load(sums + c, AllLanes{}) + load(p.bias + c, AllLanes{}));
      store(out + c, residual ? v + load(residual + c, lanes) : v, lanes);
    };
    int64_t c = 0;
    for (; c + size <= p.columns; c += size) finish(c, AllLanes{});
    if (c < p.columns) finish(c, int(p.columns - c));
  }
}
