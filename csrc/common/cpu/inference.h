// What the inference kernels share: storage by dtype, products into scratch memory and from there to the output, and
// activations as functions of a vector. They are those of activation_math.h, but SiLU with AVX-512 takes two thirds of
// the time, to a relative error of 1e-6 for |v| < 10 and 4e-6 at the ends of float32's range.
// Included per instruction set by foreach_capability.h.
#include "common/cpu/gemm.h"

#if EK_VECTOR_BYTES == 64
// v / (1 + e^−v): 2^(i/16) from a table in one register, the rest of the power from a polynomial of degree 3, and the
// quotient from a reciprocal to 14 bits and one Newton step.
EK_INLINE Vec<float> fast_silu(Vec<float> value) {
  const __m512 v = (__m512)value.raw;
  const __m512 table = _mm512_setr_ps(1.0f, 1.0442737824f, 1.0905077327f, 1.1387886348f, 1.1892071150f, 1.2418578121f,
                                      1.2968395547f, 1.3542555469f, 1.4142135624f, 1.4768261459f, 1.5422108254f,
                                      1.6104903319f, 1.6817928305f, 1.7562521604f, 1.8340080864f, 1.9152065614f);
  // t = −v log2 e, kept where 2^t is a normal number; NaN, the second operand, stays.
  __m512 t = _mm512_mul_ps(v, _mm512_set1_ps(-1.44269504f));
  t = _mm512_max_ps(_mm512_set1_ps(-126.0f), _mm512_min_ps(_mm512_set1_ps(126.0f), t));
  // Adding it leaves sixteenths in the last bits: four for the table, the others for the exponent.
  const __m512 round = _mm512_set1_ps(0x1.8p19f);
  const __m512 shifted = _mm512_add_ps(t, round);
  const __m512i bits = _mm512_castps_si512(shifted);
  const __m512 f = _mm512_sub_ps(t, _mm512_sub_ps(shifted, round));
  const __m512i exponent = _mm512_slli_epi32(_mm512_srli_epi32(bits, 4), 23);
  const __m512i entry = _mm512_castps_si512(_mm512_permutexvar_ps(bits, table));
  const __m512 power = _mm512_castsi512_ps(_mm512_add_epi32(entry, exponent));
  __m512 p = _mm512_set1_ps(5.5504109e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 denominator = _mm512_fmadd_ps(_mm512_mul_ps(power, f), p, _mm512_add_ps(power, one));
  const __m512 near = _mm512_rcp14_ps(denominator);
  const __m512 left = _mm512_fnmadd_ps(denominator, near, one);
  // At −∞ the sigmoid must be 0, which makes the product NaN as in PyTorch.
  const __mmask16 above = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-__FLT_MAX__), _CMP_NLT_UQ);
  return {(Vec<float>::raw_t)_mm512_mul_ps(v, _mm512_maskz_fmadd_ps(above, left, near, near))};
}
#endif

struct FastSilu {
  EK_INLINE Vec<float> operator()(Vec<float> v) const {
#if EK_VECTOR_BYTES == 64
    return fast_silu(v);
#else
    return activate<Activation::silu>(v);
#endif
  }
};

struct FastHardswish {
  EK_INLINE Vec<float> operator()(Vec<float> v) const { return activate<Activation::hardswish>(v); }
};

// identity, relu and relu6, which are compiled once.
struct FastClamp {
  float low, high;
  EK_INLINE Vec<float> operator()(Vec<float> v) const {
    const Vec<float> lower = Vec<float>::broadcast(low), upper = Vec<float>::broadcast(high);
    return select_le(v, lower, lower, select_le(upper, v, upper, v));
  }
};

// f(function of a vector) for the activations that follow a BatchNorm.
template <class F>
void dispatch_fast_activation(Activation activation, F f) {
  constexpr float kInfinity = __builtin_inff();
  switch (activation) {
    case Activation::silu:
      return f(FastSilu{});
    case Activation::hardswish:
      return f(FastHardswish{});
    case Activation::relu:
      return f(FastClamp{0, kInfinity});
    case Activation::relu6:
      return f(FastClamp{0, 6});
    default:
      return f(FastClamp{-kInfinity, kInfinity});
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
  multiply_rows_at(
      reinterpret_cast<const E*>(a), a_row / n, offset, rows, static_cast<const E*>(packed), depth / n, columns,
      [&](int64_t row, int64_t column, Vec<float> sum, auto) { store(out + row * out_row + column, sum, AllLanes{}); });
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
