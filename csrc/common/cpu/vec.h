// The one vector type of the CPU kernels: EK_VECTOR_BYTES of float or double, loaded from and stored to any dtype.
// Included per instruction set by foreach_capability.h.

struct AllLanes {};  // in place of a lane count: the whole vector

template <class A>
struct Vec {
  using value_type = A;
  static constexpr int size = EK_VECTOR_BYTES / sizeof(A);
  using raw_t __attribute__((vector_size(EK_VECTOR_BYTES))) = A;
  using int_t = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  using mask_t __attribute__((vector_size(EK_VECTOR_BYTES))) = int_t;

  raw_t raw;

  static EK_INLINE Vec broadcast(A value) { return {value - raw_t{}}; }
  static EK_INLINE Vec zero() { return {raw_t{}}; }

  friend EK_INLINE Vec operator+(Vec a, Vec b) { return {a.raw + b.raw}; }
  friend EK_INLINE Vec operator-(Vec a, Vec b) { return {a.raw - b.raw}; }
  friend EK_INLINE Vec operator*(Vec a, Vec b) { return {a.raw * b.raw}; }
  friend EK_INLINE Vec operator/(Vec a, Vec b) { return {a.raw / b.raw}; }
  EK_INLINE Vec& operator+=(Vec b) {
    raw += b.raw;
    return *this;
  }
};

// x where a ≤ b, else y; y where either is NaN.
template <class A>
EK_INLINE Vec<A> select_le(Vec<A> a, Vec<A> b, Vec<A> x, Vec<A> y) {
  return {a.raw <= b.raw ? x.raw : y.raw};
}

// v between two bounds; NaN stays. Written as what one instruction for a minimum, one for a maximum does.
EK_INLINE Vec<float> clamp(Vec<float> v, float low, float high) {
  const auto lower = Vec<float>::broadcast(low).raw, upper = Vec<float>::broadcast(high).raw;
  const auto below = upper < v.raw ? upper : v.raw;
  return {lower > below ? lower : below};
}

// A number per lane, as a constant: index_of(lane).
template <class A>
struct LaneIndices {
  typename Vec<A>::int_t values[Vec<A>::size];

  template <class F>
  static constexpr LaneIndices from(F index_of) {
    LaneIndices indices{};
    for (int lane = 0; lane < Vec<A>::size; ++lane) indices.values[lane] = index_of(lane);
    return indices;
  }
  EK_INLINE typename Vec<A>::mask_t vector() const {
    typename Vec<A>::mask_t indices;
    std::memcpy(&indices, values, sizeof(indices));
    return indices;
  }
};

// The sum of the first 2 · width lanes: halving keeps the order of additions the same for every caller.
template <class A, int width = Vec<A>::size / 2>
EK_INLINE A sum_of_lanes(Vec<A> v) {
  if constexpr (width == 0) {
    return v.raw[0];
  } else {
    static constexpr auto upper = LaneIndices<A>::from([](int lane) { return (lane + width) % Vec<A>::size; });
    return sum_of_lanes<A, width / 2>({v.raw + __builtin_shuffle(v.raw, upper.vector())});
  }
}

// v in the first `lanes` lanes, `fill` in the others.
template <class A>
EK_INLINE Vec<A> fill_lanes(Vec<A> v, Vec<A> fill, int lanes) {
  static constexpr auto index = LaneIndices<A>::from([](int lane) { return lane; });
  return {index.vector() < typename Vec<A>::int_t(lanes) ? v.raw : fill.raw};
}
template <class A>
EK_INLINE Vec<A> fill_lanes(Vec<A> v, Vec<A>, AllLanes) {
  return v;
}

template <class T>
EK_INLINE Vec<accumulator_t<T>> load(const T* source, AllLanes) {
  using A = accumulator_t<T>;
  using V = Vec<A>;
  V v;
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(&v.raw, source, sizeof(v.raw));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using narrow_t __attribute__((vector_size(EK_VECTOR_BYTES / 2))) = uint16_t;
    using wide_t __attribute__((vector_size(EK_VECTOR_BYTES))) = uint32_t;
    narrow_t bits;
    std::memcpy(&bits, source, sizeof(bits));
    const wide_t wide = __builtin_convertvector(bits, wide_t) << 16;
    std::memcpy(&v.raw, &wide, sizeof(wide));
  } else {
    static_assert(std::is_same_v<T, Half>);
#if EK_VECTOR_BYTES == 64
    v.raw = (typename V::raw_t)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#elif EK_VECTOR_BYTES == 32
    v.raw = (typename V::raw_t)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#else
    for (int i = 0; i < V::size; ++i) v.raw[i] = to_float(source[i]);
#endif
  }
  return v;
}

// The first `lanes` values; zero in the other lanes, whose memory is not touched.
template <class T>
EK_INLINE Vec<accumulator_t<T>> load(const T* source, int lanes) {
#if EK_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    return {(Vec<float>::raw_t)_mm512_maskz_loadu_ps(__mmask16((1u << lanes) - 1), source)};
  }
#endif
  T values[Vec<accumulator_t<T>>::size] = {};
  std::memcpy(values, source, lanes * sizeof(T));
  return load(values, AllLanes{});
}

template <class T>
EK_INLINE void store(T* target, Vec<accumulator_t<T>> v, AllLanes) {
  using A = accumulator_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(target, &v.raw, sizeof(v.raw));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using narrow_t __attribute__((vector_size(EK_VECTOR_BYTES / 2))) = uint16_t;
#ifdef EK_BFLOAT16_INSTRUCTIONS
    const narrow_t rounded_bits = (narrow_t)_mm512_cvtneps_pbh((__m512)v.raw);
    std::memcpy(target, &rounded_bits, sizeof(rounded_bits));
    return;
#endif
    using wide_t __attribute__((vector_size(EK_VECTOR_BYTES))) = uint32_t;
    wide_t bits;
    std::memcpy(&bits, &v.raw, sizeof(bits));
    const wide_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
    const wide_t quiet_nan = wide_t{} + 0x7fc0u;
    const narrow_t narrow = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded, narrow_t);
    std::memcpy(target, &narrow, sizeof(narrow));
  } else {
    static_assert(std::is_same_v<T, Half>);
#if EK_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        _mm512_cvtps_ph((__m512)v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif EK_VECTOR_BYTES == 32
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph((__m256)v.raw, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < Vec<A>::size; ++i) target[i] = to_half(v.raw[i]);
#endif
  }
}

// Writes the first `lanes` values and nothing else.
template <class T>
EK_INLINE void store(T* target, Vec<accumulator_t<T>> v, int lanes) {
#if EK_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(target, __mmask16((1u << lanes) - 1), (__m512)v.raw);
    return;
  }
#endif
  T values[Vec<accumulator_t<T>>::size];
  store(values, v, AllLanes{});
  std::memcpy(target, values, lanes * sizeof(T));
}

// p · 2^n for an integral n, where p is about 1: to infinity and to zero where a float's exponents end.
EK_INLINE Vec<float> scale_by_power_of_2(Vec<float> p, Vec<float> n) {
  // Two factors: n may lie outside a float's exponents while the product does not.
  using bits_t = Vec<float>::mask_t;
  const bits_t exponent = __builtin_convertvector(n.raw, bits_t);
  const bits_t first = exponent >> 1;
  const bits_t first_bits = (first + 127) << 23, second_bits = (exponent - first + 127) << 23;
  Vec<float> first_factor, second_factor;
  std::memcpy(&first_factor.raw, &first_bits, sizeof(first_bits));
  std::memcpy(&second_factor.raw, &second_bits, sizeof(second_bits));
  return p * first_factor * second_factor;
}

// exp to about 1 ulp (Cody–Waite reduction, a polynomial of degree 6 with a relative error of 2e-8); overflows to
// infinity, underflows to zero, keeps NaN.
EK_INLINE Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  x = clamp(x, -104.0f, 104.0f);
  const V round = V::broadcast(0x1.8p23f);  // adding it rounds to an integer
  const V n = (x * V::broadcast(1.44269504f) + round) - round;
  V r = x - n * V::broadcast(0x1.62e4p-1f);  // ln 2, its first half exact times n
  r = r - n * V::broadcast(1.42860677e-6f);
  V p = V::broadcast(1.3843371e-03f);
  p = p * r + V::broadcast(8.374398e-03f);
  p = p * r + V::broadcast(4.1668016e-02f);
  p = p * r + V::broadcast(1.6666429e-01f);
  p = p * r + V::broadcast(0.49999994f);
  p = p * r + V::broadcast(1.0f);
  p = p * r + V::broadcast(1.0f);
  return scale_by_power_of_2(p, n);
}

EK_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < Vec<double>::size; ++i) x.raw[i] = std::exp(x.raw[i]);
  return x;
}

#if EK_VECTOR_BYTES == 64
// 2^(i/16) less i steps of the 4 highest bits of a float's mantissa, so that adding a number of sixteenths to those bits
// and to the exponent above them gives the power.
struct PowersOfTwo {
  int32_t bits[16];

  static constexpr PowersOfTwo make() {
    constexpr float kPowers[16] = {1.0f,          1.0442737824f, 1.0905077327f, 1.1387886348f,
                                   1.1892071150f, 1.2418578121f, 1.2968395547f, 1.3542555469f,
                                   1.4142135624f, 1.4768261459f, 1.5422108254f, 1.6104903319f,
                                   1.6817928305f, 1.7562521604f, 1.8340080864f, 1.9152065614f};
    PowersOfTwo powers{};
    for (int i = 0; i < 16; ++i) powers.bits[i] = std::bit_cast<int32_t>(kPowers[i]) - (i << 19);
    return powers;
  }
};

// To about 1 ulp: e^−v = 2^(n/16) 2^f, the first from a table in one register, the second from a polynomial of degree 3,
// and the quotient from a reciprocal to 14 bits and one Newton step. What limits it is the multiplier, which a
// polynomial for the whole power would use half as often again. Below −87, where the quotient is no normal number, the
// result is zero; NaN stays.
EK_INLINE __m512 sigmoid(__m512 v) {
  static constexpr PowersOfTwo kPowers = PowersOfTwo::make();
  constexpr float kLog2E = 1.44269502f, kLog2ERest = 1.92596299e-8f;
  __m512 x = _mm512_min_ps(_mm512_set1_ps(87.3f), v);  // the second operand where one is NaN
  x = _mm512_max_ps(_mm512_set1_ps(-87.3f), x);
  const __m512 round = _mm512_set1_ps(0x1.8p19f);  // adding it rounds to sixteenths, whose number is in the last bits
  const __m512 shifted = _mm512_fnmadd_ps(x, _mm512_set1_ps(kLog2E), round);
  const __m512i bits = _mm512_castps_si512(shifted);
  __m512 f = _mm512_fnmsub_ps(x, _mm512_set1_ps(kLog2E), _mm512_sub_ps(shifted, round));
  f = _mm512_fnmadd_ps(x, _mm512_set1_ps(kLog2ERest), f);
  const __m512i entry = _mm512_permutexvar_epi32(bits, _mm512_loadu_si512(kPowers.bits));
  const __m512 power = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(bits, 19), entry));
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(5.5504109e-2f), f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 denominator = _mm512_fmadd_ps(_mm512_mul_ps(power, f), p, _mm512_add_ps(power, one));
  const __m512 near = _mm512_rcp14_ps(denominator);
  const __m512 left = _mm512_fnmadd_ps(denominator, near, one);
  const __mmask16 representable = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
  return _mm512_maskz_fmadd_ps(representable, left, near, near);
}
#endif

// 1 / (1 + e^−v).
template <class A>
EK_INLINE Vec<A> sigmoid(Vec<A> v) {
#if EK_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<A, float>) return {(typename Vec<A>::raw_t)sigmoid((__m512)v.raw)};
#endif
  return Vec<A>::broadcast(1) / (Vec<A>::broadcast(1) + exp(Vec<A>::zero() - v));
}
