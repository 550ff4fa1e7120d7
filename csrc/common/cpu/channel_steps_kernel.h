// The sums of channel_steps.h, over channels [begin, end). Included per instruction set by foreach_capability.h. Loops that
// the compiler turns into vectors: nothing in memory is read and written by two names.

template <class A>
const A* values(const void* rows) {
  return static_cast<const A*>(rows);
}

template <class A>
void sum_rows_channels(const SumRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t g = 0; g < p.groups; ++g) {
    A* __restrict const target = static_cast<A*>(p.sums) + g * p.row;
    const A* source = values<A>(p.rows) + g * p.size * p.row;
    std::copy(source + begin, source + end, target + begin);
    for (int64_t i = 1; i < p.size; ++i) {
      source += p.row;
      for (int64_t c = begin; c < end; ++c) target[c] += source[c];
    }
  }
}

template <class A>
void merge_statistics_channels(const MergeStatisticsParams& p, int64_t begin, int64_t end) {
  double* __restrict const mean = p.running_mean;
  double* __restrict const m2 = p.running_m2;
  double count = 0;
  for (int64_t part = 0; part < p.parts; ++part) {
    const double size = p.sizes[part], total = count + size;
    const double mean_weight = size / total, m2_weight = count * mean_weight;
    const A* const part_mean = values<A>(p.means) + part * p.row;
    const A* const part_m2 = values<A>(p.m2s) + part * p.row;
    for (int64_t c = begin; c < end; ++c) {
      const double delta = double(part_mean[c]) - mean[c];
      mean[c] += delta * mean_weight;
      m2[c] += double(part_m2[c]) + delta * delta * m2_weight;
    }
    count = total;
  }
  A* __restrict const mean_out = static_cast<A*>(p.mean);
  A* __restrict const var_out = static_cast<A*>(p.var);
  for (int64_t c = begin; c < end; ++c) {
    mean_out[c] = A(mean[c]);
    // The correction of a tile's M2 can leave a constant channel a rounding error below zero.
    var_out[c] = count == 0 || m2[c] < 0 ? A(0) : A(m2[c] / count);
  }
}

template <class A>
void batch_norm_gradient_channels(const BatchNormGradientParams& p, int64_t begin, int64_t end) {
  double* __restrict const beta = p.beta_sum;
  double* __restrict const gamma = p.gamma_sum;
  for (int64_t n = 0; n < p.images; ++n) {
    const auto image = [&](const void* rows) { return values<A>(rows) + n * p.row; };
    const A *const slope = image(p.slope), *const slope_x = image(p.slope_x);
    if (p.factor) {
      const A* const factor = image(p.factor);
      for (int64_t c = begin; c < end; ++c) {
        beta[c] += double(factor[c]) * slope[c];
        gamma[c] += double(factor[c]) * slope_x[c];
      }
    } else {
      for (int64_t c = begin; c < end; ++c) {
        beta[c] += slope[c];
        gamma[c] += slope_x[c];
      }
    }
    if (!p.offset) continue;
    const A *const offset = image(p.offset), *const a3 = image(p.a3), *const a5 = image(p.a5);
    for (int64_t c = begin; c < end; ++c) {
      beta[c] += double(offset[c]) * a3[c];
      gamma[c] += double(offset[c]) * a5[c];
    }
  }
  const double reciprocal = p.count == 0 ? 0 : 1 / p.count;
  A* __restrict const dbeta = static_cast<A*>(p.dbeta);
  A* __restrict const dgamma = static_cast<A*>(p.dgamma);
  A* __restrict const mean_dv = static_cast<A*>(p.mean_dv);
  A* __restrict const mean_dv_x = static_cast<A*>(p.mean_dv_x);
  for (int64_t c = begin; c < end; ++c) {
    dbeta[c] = A(beta[c]);
    dgamma[c] = A(gamma[c]);
    mean_dv[c] = A(beta[c] * reciprocal);
    mean_dv_x[c] = A(gamma[c] * reciprocal);
  }
}

inline void sum_rows_step(const SumRowsParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { sum_rows_channels<typename decltype(a)::type>(p, begin, end); });
}
inline void merge_statistics_step(const MergeStatisticsParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype, [&](auto a) { merge_statistics_channels<typename decltype(a)::type>(p, begin, end); });
}
inline void batch_norm_gradient_step(const BatchNormGradientParams& p, int64_t begin, int64_t end) {
  dispatch_accumulator(p.dtype,
                       [&](auto a) { batch_norm_gradient_channels<typename decltype(a)::type>(p, begin, end); });
}
