// F2: BN1 and the activation on load, the depthwise convolution, and y with its statistics or, in inference, z with its
// pooled sums. A block slides down its strip: raw rows arrive in shared memory while the rows before them are computed;
// each element is normalised and activated once; each thread keeps its weights and, for every row of y in flight, its
// columns' sums in registers, so that a row of x is consumed once, whichever rows of y it belongs to.
#pragma once

#include "common/cuda/activation.cuh"
#include "common/cuda/reduce.cuh"
#include "depthwise_conv_bn_act/tile.cuh"

namespace effnet_kernels::cuda {

template <int K, int S>
struct DepthwiseForwardTraits {
  static_assert(K % 2 == 1 && (S == 1 || S == 2));
  static constexpr int kColumns = forward_columns(S);     // of y, per thread
  static constexpr int kInFlight = rows_in_flight(K, S);  // rows of y that a row of x belongs to
  static constexpr int kWindow = (kColumns - 1) * S + K;  // columns of x that a thread reads
  static_assert((kInFlight - 1) * S < K && K <= kInFlight * S);
  static constexpr int kBlocks = K == 7 ? 1 : 2;  // on a multiprocessor, at least
};

// Raw rows to transformed ones: zeros outside `window`, where padding is.
template <class T, Layout layout>
EK_DEVICE void activate_rows(const Stage<T, layout>& stage, const Cells<layout>& line, const Place& at, int threads,
                             bool prologue, Activation activation, const BatchNormConstants& bn) {
  constexpr int kBatch = 4;
#pragma unroll 1
  for (int r = 0; r < line.rows; ++r) {
    const int image_row = stage.row + r;
    const bool row_exists = at.live && image_row >= stage.window.row && image_row < stage.window.row_end;
    const T* const cells = row_exists ? stage.cells(at.own, image_row) : nullptr;
    float* const to = line.row(at.own, r);
#pragma unroll 1
    for (int c0 = at.column_thread; c0 < line.columns; c0 += kBatch * threads) {
      float v[kBatch];
      bool exists[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int column = stage.column + c0 + i * threads;
        exists[i] = row_exists && column >= stage.window.column && column < stage.window.column_end;
        v[i] = exists[i] ? widen(load_shared(cells + column * stage.step())) : 0.0f;
        if (prologue) v[i] = bn(v[i]);
      }
      if (prologue) activate_all(activation, v);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int c = c0 + i * threads;
        if (c < line.columns) store_shared(to + c * line.step(), exists[i] ? v[i] : 0.0f);
      }
    }
  }
}

template <class T, Layout layout, int K, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, DepthwiseForwardTraits<K, S>::kBlocks)
    depthwise_forward_kernel(DepthwiseForwardParams p) {
  using Traits = DepthwiseForwardTraits<K, S>;
  constexpr int kColumns = Traits::kColumns, kInFlight = Traits::kInFlight;
  const DepthwisePlan& plan = p.plan;
  const DepthwiseShape& shape = plan.shape;
  const Place at = Place::here<layout>(plan);
  const Image in{int(shape.channels), int(shape.height), int(shape.width)};
  const Image out{int(shape.channels), int(shape.out_height), int(shape.out_width)};

  const DepthwiseShared bytes = depthwise_shared(plan, kVector<T>);
  char* memory = static_cast<char*>(dynamic_shared());
  const auto take = [&](int size) {
    char* const taken = memory;
    memory += size;
    return taken;
  };
  char* const raw = take(2 * bytes.raw_in);
  const Cells<layout> line{reinterpret_cast<float*>(take(bytes.line)), plan.stage_rows * S, plan.line_columns,
                           plan.channels};
  const Cells<layout> result{reinterpret_cast<float*>(take(bytes.result)), plan.stage_rows, plan.tile_columns,
                             plan.channels};
  float* const scratch = reinterpret_cast<float*>(take(bytes.scratch));

  float w[K * K];
#pragma unroll
  for (int i = 0; i < K * K; ++i) w[i] = at.live ? read(p.w, int64_t(at.channel) * (K * K) + i) : 0.0f;
  const BatchNormConstants none{0.0f, 1.0f, 1.0f, 0.0f};
  const BatchNormConstants bn1 = p.prologue && at.live ? constants_of(p.bn1, at.channel) : none;
  const BatchNormConstants bn2 = p.inference && at.live ? constants_of(p.bn2, at.channel) : none;

  // The strip's rows of y, the rows of x under them, and the tile's columns of both.
  const int first_row = at.strip * plan.strip_rows;
  const int rows = out.height - first_row < plan.strip_rows ? out.height - first_row : plan.strip_rows;
  const int first_column = at.tile * plan.tile_columns;
  const int columns = out.width - first_column < plan.tile_columns ? out.width - first_column : plan.tile_columns;
  const int in_row = first_row * S - shape.top, in_rows = (rows - 1) * S + K;
  const int in_column = first_column * S - shape.left, in_columns = (columns - 1) * S + K;
  const int steps = rows + kInFlight - 1;
  const int stages = (steps + plan.stage_rows - 1) / plan.stage_rows;

  // Two stages are in shared memory: the one computed with and the one on its way.
  const auto stage_of = [&](int n, int stage, int slot) {
    const int offset = stage * plan.stage_rows * S;
    const int left = in_rows - offset < plan.in.rows ? in_rows - offset : plan.in.rows;
    return Stage<T, layout>{plan.in,
                            in,
                            plan.whole_rows(),
                            reinterpret_cast<T*>(raw + slot * bytes.raw_in),
                            n,
                            at.first_channel,
                            in_row + offset,
                            in_column,
                            Window::within(in, in_row + offset, left, in_column, in_columns)};
  };
  // Threads beyond the tile compute its last columns again and drop them.
  const int own_column = at.column_thread * kColumns;
  const int line_column = (own_column < plan.tile_columns ? own_column : plan.tile_columns - kColumns) * S;
  const T* const x = static_cast<const T*>(p.x);
  float sums[kInFlight][kColumns];
  float moments[3] = {}, z_sum[1] = {};
  const int stride = channel_stride<layout>(plan);

  stage_of(at.first_image, 0, 0).copy_from(x, plan.aligned);
  end_batch();
  int n = at.first_image;
  const int last = at.first_image + at.images - 1;
  for (int stage = 0, slot = 0; n <= last; slot ^= 1) {
    const bool image_ends = stage == stages - 1;
    if (!(image_ends && n == last)) {
      stage_of(n + image_ends, image_ends ? 0 : stage + 1, slot ^ 1).copy_from(x, plan.aligned);
    }
    end_batch();
    wait_for_all_but_newest();
    __syncthreads();
    activate_rows(stage_of(n, stage, slot), line, at, plan.column_threads, p.prologue, p.activation, bn1);
    __syncthreads();

    if (stage == 0) {
#pragma unroll
      for (int i = 0; i < kInFlight * kColumns; ++i) sums[i / kColumns][i % kColumns] = 0.0f;
    }
    const int first_result = stage * plan.stage_rows - (kInFlight - 1);  // the row of y that the first step completes
#pragma unroll 1
    for (int step = 0; step < plan.stage_rows; ++step) {
#pragma unroll
      for (int j = 0; j < S; ++j) {
        const float* const cells = line.row(at.own, step * S + j) + line_column * line.step();
        float v[Traits::kWindow];
#pragma unroll
        for (int i = 0; i < Traits::kWindow; ++i) v[i] = load_shared(cells + i * line.step());
#pragma unroll
        for (int m = 0; m < kInFlight; ++m) {
          const int ky = m * S + j;
          if (ky >= K) continue;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
#pragma unroll
            for (int kx = 0; kx < K; ++kx) sums[m][c] = fmaf(w[ky * K + kx], v[c * S + kx], sums[m][c]);
          }
        }
      }
      const int row = first_result + step;
      if (row >= 0 && row < rows && at.live) {
        float y[kColumns];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) y[c] = sums[kInFlight - 1][c];
        if (p.inference) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) y[c] = bn2(y[c]);
          activate_all(p.activation, y);
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int column = own_column + c;
          if (column >= columns) continue;
          store_shared(result.row(at.own, step) + column * result.step(), y[c]);
          if (p.z_sum != nullptr) z_sum[0] += y[c];
          if (p.moments.count == nullptr) continue;
          const float stored = rounded<T>(y[c]);  // what later passes normalise
          moments[0] += 1.0f;
          const float delta = stored - moments[1];
          moments[1] = fmaf(delta, __fdividef(1.0f, moments[0]), moments[1]);
          moments[2] = fmaf(delta, stored - moments[1], moments[2]);
        }
      }
#pragma unroll
      for (int m = kInFlight - 1; m >= 0; --m) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[m][c] = m > 0 ? sums[m - 1][c] : 0.0f;
      }
    }
    __syncthreads();

    const int begin = first_result < 0 ? 0 : first_result;
    const int end = first_result + plan.stage_rows < rows ? first_result + plan.stage_rows : rows;
    const Window window{first_row + begin, first_row + end, first_column, first_column + columns};
    write_window(static_cast<T*>(p.out), result, out, n, at.first_channel, first_row + first_result, first_column,
                 window, plan.aligned);
    if (p.z_sum != nullptr && image_ends) {
      reduce(z_sum, stride, plan.column_threads, scratch, Add{});
      const int64_t piece = int64_t(n) * plan.pieces() + at.piece;
      if (at.column_thread == 0 && at.live) store_one(p.z_sum + piece * shape.channels + at.channel, z_sum[0]);
      z_sum[0] = 0.0f;
    }
    stage = image_ends ? 0 : stage + 1;
    n += image_ends;
  }
  if (p.moments.count == nullptr) return;
  reduce(moments, stride, plan.column_threads, scratch, MergeMoments{});
  if (at.column_thread > 0 || !at.live) return;
  const int64_t index = int64_t(at.part) * shape.channels + at.channel;
  if (at.channel == 0) store_one(p.moments.count + at.part, moments[0]);
  store_one(p.moments.mean + index, moments[1]);
  store_one(p.moments.m2 + index, moments[2]);
}

}  // namespace effnet_kernels::cuda
