// Values between memory and registers: 16 bytes at a time where address and extent allow it, one by one where not.
// Arithmetic is float32 for every dtype. All of global memory is read and written through this file.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "common/dispatch.h"
#ifdef EFFNET_HOSTCUDA
#include <hostcuda.h>
#endif

#define EK_DEVICE __device__ __forceinline__

namespace effnet_kernels::cuda {

// A vector of T is what one access of 16 bytes moves.
template <class T>
inline constexpr int kVector = 16 / int(sizeof(T));

EK_DEVICE float widen(float value) { return value; }
EK_DEVICE float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }
EK_DEVICE float widen(BFloat16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

template <class T>
EK_DEVICE T narrow(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (std::is_same_v<T, Half>) {
    return {__half_as_ushort(__float2half_rn(value))};
  } else {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  }
}

// As it is after a round trip through memory.
template <class T>
EK_DEVICE float rounded(float value) {
  return widen(narrow<T>(value));
}

// A vector as it is in memory. It is computed with four elements at a time, which bounds the registers in use.
template <class T>
struct Vec {
  static constexpr int size = kVector<T>, quads = size / 4;
  uint32_t words[4];

  EK_DEVICE void get(int quad, float (&v)[4]) const {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = widen(T{uint16_t(words[2 * quad + i / 2] >> (16 * (i % 2)))});
    }
  }
  EK_DEVICE void set(int quad, const float (&v)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = __float_as_uint(v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        words[2 * quad + i / 2] = uint32_t(narrow<T>(v[i]).bits) | uint32_t(narrow<T>(v[i + 1]).bits) << 16;
      }
    }
  }
  EK_DEVICE T element(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else {
      return {uint16_t(words[i / 2] >> (16 * (i % 2)))};
    }
  }
};

// Which elements of a vector exist: [first, last), and whether they may be moved as one.
struct Lanes {
  int first, last;
  bool whole;

  EK_DEVICE bool contains(int i) const { return whole || (i >= first && i < last); }
};

template <class T>
EK_DEVICE Lanes lanes_of(int first, int last, bool aligned) {
  return {first, last, aligned && first <= 0 && last >= kVector<T>};
}

template <class T>
EK_DEVICE T load_one(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return __ldca(p);
  } else {
    return {__ldca(reinterpret_cast<const unsigned short*>(p))};
  }
}
template <class T>
EK_DEVICE void store_one(T* p, T value) {
  if constexpr (sizeof(T) == 4) {
    __stwb(p, value);
  } else {
    __stwb(reinterpret_cast<unsigned short*>(p), value.bits);
  }
}

// Absent elements read as 0.
template <class T>
EK_DEVICE Vec<T> load(const T* p, Lanes lanes) {
  if (lanes.whole) {
    const uint4 bits = __ldca(reinterpret_cast<const uint4*>(p));
    return {{bits.x, bits.y, bits.z, bits.w}};
  }
  Vec<T> vec{};
#pragma unroll
  for (int i = 0; i < Vec<T>::size; ++i) {
    if (i < lanes.first || i >= lanes.last) continue;
    if constexpr (sizeof(T) == 4) {
      vec.words[i] = __float_as_uint(load_one(p + i));
    } else {
      vec.words[i / 2] |= uint32_t(load_one(p + i).bits) << (16 * (i % 2));
    }
  }
  return vec;
}
template <class T>
EK_DEVICE void store(T* p, const Vec<T>& vec, Lanes lanes) {
  if (lanes.whole) {
    __stwb(reinterpret_cast<uint4*>(p), make_uint4(vec.words[0], vec.words[1], vec.words[2], vec.words[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < Vec<T>::size; ++i) {
    if (i >= lanes.first && i < lanes.last) store_one(p + i, vec.element(i));
  }
}

// Shared memory. The host runtime checks what a GPU would trap.
template <class V>
EK_DEVICE V load_shared(const V* p) {
#ifdef EFFNET_HOSTCUDA
  hostcuda::check_shared(p, sizeof(V));
#endif
  return *p;
}
template <class V>
EK_DEVICE void store_shared(V* p, V value) {
#ifdef EFFNET_HOSTCUDA
  hostcuda::check_shared(p, sizeof(V));
#endif
  *p = value;
}

// The block's dynamic shared memory, 16-byte aligned.
EK_DEVICE void* dynamic_shared() {
#ifdef EFFNET_HOSTCUDA
  return hostcuda::dynamic_shared();
#else
  extern __shared__ uint4 dynamic_shared_memory[];
  return dynamic_shared_memory;
#endif
}

}  // namespace effnet_kernels::cuda
