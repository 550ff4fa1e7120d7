// Values between tensors and the padded arrays of the CPU kernels.
#pragma once

#include <algorithm>
#include <utility>

#include "common/cpu/allocate.h"
#include "common/cpu/buffer.h"
#include "common/cpu/passes.h"
#include "common/tensor.h"

namespace effnet_kernels::cpu {

// [rows, padded columns] to be written, but for the padding, which is zeros.
template <class A>
Buffer<A> padded_rows(int64_t rows, int64_t columns) {
  const int64_t row = padded_channels(columns);
  return row == columns ? Buffer<A>::unfilled(rows * row) : Buffer<A>(rows * row);
}

// Values of any dtype as [rows, padded columns], zero-padded.
template <class A>
Buffer<A> read_rows(const Tensor& t, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(t.numel() == rows * columns, "expected ", rows * columns, " values, got ", t.numel());
  const Tensor dense = t.is_contiguous() ? t : torch::stable::contiguous(t);
  const int64_t row = padded_channels(columns);
  Buffer<A> values = padded_rows<A>(rows, columns);
  dispatch_dtype(dtype_of(t), [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    const T* const source = static_cast<const T*>(dense.const_data_ptr());
    for (int64_t r = 0; r < rows; ++r) {
      const T* const from = source + r * columns;
      A* const to = values.data() + r * row;
      if constexpr (std::is_same_v<T, A>) {
        std::copy_n(from, columns, to);
      } else if constexpr (sizeof(T) == 2) {
        for (int64_t c = 0; c < columns; ++c) to[c] = to_float(from[c]);
      } else {
        for (int64_t c = 0; c < columns; ++c) to[c] = A(from[c]);
      }
    }
  });
  return values;
}

template <class T, class A>
T rounded_to(A value) {
  if constexpr (std::is_same_v<T, Half>) {
    return to_half(float(value));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(float(value));
  } else {
    return T(value);
  }
}

// [rows, padded columns] into dense rows of any dtype.
template <class A, class T>
void copy_rows(const A* values, int64_t rows, int64_t columns, T* to) {
  const int64_t row = padded_channels(columns);
  for (int64_t r = 0; r < rows; ++r) {
    const A* const from = values + r * row;
    if constexpr (std::is_same_v<T, A>) {
      std::copy_n(from, columns, to + r * columns);
    } else {
      for (int64_t c = 0; c < columns; ++c) to[r * columns + c] = rounded_to<T>(from[c]);
    }
  }
}
template <class A>
void write_rows(const A* values, int64_t rows, int64_t columns, const Tensor& target) {
  dispatch_dtype(dtype_of(target), [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    copy_rows(values, rows, columns, static_cast<T*>(target.mutable_data_ptr()));
  });
}

template <class A>
Tensor vector_tensor(const A* values, const Tensor& like, int64_t rows, int64_t columns) {
  Tensor t = empty_vector(like, {rows, columns});
  write_rows(values, rows, columns, t);
  return t;
}

// write(dense tensor) fills a tensor of any strides.
template <class Write>
void write_dense(Tensor& tensor, Write write) {
  if (tensor.is_contiguous()) return write(tensor);
  const Tensor dense = torch::stable::contiguous(tensor);
  write(dense);
  torch::stable::copy_(tensor, dense);
}

// The gradient of a parameter, in its dtype and strides; write(dense tensor) fills it.
template <class Write>
Tensor written_gradient(const Tensor& parameter, Write write) {
  Tensor gradient = allocate_gradient(parameter);
  write_dense(gradient, write);
  return gradient;
}
template <class A>
Tensor parameter_gradient(const A* values, int64_t rows, int64_t columns, const Tensor& parameter) {
  return written_gradient(parameter, [&](const Tensor& dense) { write_rows(values, rows, columns, dense); });
}

// Whether a tensor's memory can be read and written as it lies: dense values of A, and then as rows without padding.
template <class A>
bool is_of(const Tensor& t) {
  return dtype_of(t) == (sizeof(A) == 4 ? DType::float32 : DType::float64);
}
template <class A>
bool is_dense_of(const Tensor& t) {
  return is_of<A>(t) && t.is_contiguous();
}
template <class A>
bool has_rows_of(const Tensor& t, int64_t columns) {
  return is_dense_of<A>(t) && columns == padded_channels(columns);
}

// A tensor's values as [rows, padded columns]: the tensor's own memory, where it has them like that, else a copy.
template <class A>
class Rows {
 public:
  Rows() : copy_(0), values_(nullptr) {}
  Rows(const Tensor& t, int64_t rows, int64_t columns)
      : copy_(has_rows_of<A>(t, columns) ? Buffer<A>(0) : read_rows<A>(t, rows, columns)),
        values_(copy_.size() ? copy_.data() : static_cast<const A*>(t.const_data_ptr())) {
    STD_TORCH_CHECK(t.numel() == rows * columns, "expected ", rows * columns, " values, got ", t.numel());
  }

  const A* data() const { return values_; }

 private:
  Buffer<A> copy_;
  const A* values_;
};

// [rows, padded columns] that become the values of a tensor: its own memory, where it has them like that.
template <class A>
class ResultRows {
 public:
  ResultRows(Tensor tensor, int64_t rows, int64_t columns)
      : rows_(rows),
        columns_(columns),
        tensor_(std::move(tensor)),
        direct_(has_rows_of<A>(tensor_, columns)),
        values_(direct_ ? Buffer<A>(0) : padded_rows<A>(rows, columns)) {}

  A* data() { return direct_ ? static_cast<A*>(tensor_.mutable_data_ptr()) : values_.data(); }
  // Once all are written.
  Tensor tensor() {
    if (!direct_) {
      write_dense(tensor_, [&](const Tensor& dense) { write_rows(values_.data(), rows_, columns_, dense); });
    }
    return tensor_;
  }

 private:
  int64_t rows_, columns_;
  Tensor tensor_;
  bool direct_;
  Buffer<A> values_;
};

// The gradient of a parameter, as rows to be written.
template <class A>
ResultRows<A> gradient_rows(const Tensor& parameter, int64_t rows, int64_t columns) {
  return {allocate_gradient(parameter), rows, columns};
}

}  // namespace effnet_kernels::cpu
