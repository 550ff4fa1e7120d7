// B2: dy from (grad, y), then the input gradient, the weight gradient and BN1's sums, reading grad, y and x once. A block
// owns a tile of x and slides down it. Rows of dy go through shared memory; a thread keeps in registers, for the rows of
// x that the current row of dy belongs to, its columns' x, a and gradient sums, beside its weights and their gradients.
#pragma once

#include "depthwise_conv_bn_act/forward.cuh"

namespace effnet_kernels::cuda {

template <int K, int S>
struct DepthwiseBackwardTraits {
  static_assert(K % 2 == 1 && (S == 1 || S == 2) && kColumns % S == 0);
  static constexpr int kInFlight = rows_in_flight(K, S);        // rows of dy that a row of x belongs to
  static constexpr int kRows = kInFlight * S;                   // rows of x in flight
  static constexpr int kWindow = kColumns / S + kInFlight - 1;  // columns of dy that a thread reads
  static_assert(K <= kRows);
  static constexpr int kBlocks = K == 3 ? 2 : 1;  // on a multiprocessor, at least

  // Of the window, the column of dy that tap kx joins with the thread's column c of x; −1 where there is none.
  static EK_HOST_DEVICE constexpr int window(int c, int kx) {
    return (c - kx) % S == 0 ? (c - kx) / S + kInFlight - 1 : -1;
  }
};

enum GradientConstant { kGMean, kGRstd, kGScale, kGBeta, kGFactor, kGOffset, kGMeanDv, kGMeanDvX };
static_assert(kGMeanDvX + 1 == kDepthwiseConstants);

// An image's constants of dy, per channel of the block, as kDepthwiseConstants rows.
EK_DEVICE void fill_gradient_constants(float* table, const DepthwiseBackwardParams& p, const Place& at, int n) {
  const int channels = p.plan.channels;
  const int64_t all = p.plan.shape.channels;
  for (int i = int(threadIdx.x); i < channels && at.first_channel + i < all; i += int(blockDim.x)) {
    const int64_t channel = at.first_channel + i, row = int64_t(n) * all + channel;
    const BatchNormConstants bn = constants_of(p.bn2, channel);
    const Gradient& g = p.gradient;
    const float pixels = float(p.plan.shape.out_pixels());
    const float values[kDepthwiseConstants] = {
        bn.mean,
        bn.rstd,
        bn.scale,
        bn.beta,
        factor_of(g.factor, g.factor_by_image, n, all, channel),
        g.offset == nullptr ? 0.0f : load_one(g.offset + row) / pixels,
        load_one(g.mean_dv + channel),
        load_one(g.mean_dv_x + channel),
    };
#pragma unroll
    for (int k = 0; k < kDepthwiseConstants; ++k) store_shared(table + k * channels + i, values[k]);
  }
}

// Raw rows of grad and y to rows of dy: zeros outside the image.
template <class T, Layout layout>
EK_DEVICE void differentiate_rows(const Stage<T, layout>& grad, const Stage<T, layout>& y, const Cells<layout>& line,
                                  const Place& at, int threads, const float* table, Activation activation) {
  constexpr int kBatch = 2;
  float k[kDepthwiseConstants];
#pragma unroll
  for (int i = 0; i < kDepthwiseConstants; ++i) {
    k[i] = at.live ? load_shared(table + i * line.channels + at.own) : 0.0f;
  }
#pragma unroll 1
  for (int r = 0; r < line.rows; ++r) {
    const int image_row = y.row + r;
    const bool row_exists = at.live && image_row >= y.window.row && image_row < y.window.row_end;
    const T* const grad_cells = row_exists ? grad.cells(at.own, image_row) : nullptr;
    const T* const y_cells = row_exists ? y.cells(at.own, image_row) : nullptr;
    float* const to = line.row(at.own, r);
#pragma unroll 1
    for (int c0 = at.column_thread; c0 < line.columns; c0 += kBatch * threads) {
      float g[kBatch], centred[kBatch], v[kBatch], slope[kBatch];
      bool exists[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int column = y.column + c0 + i * threads;
        exists[i] = row_exists && column >= y.window.column && column < y.window.column_end;
        g[i] = exists[i] ? widen(load_shared(grad_cells + column * grad.step())) : 0.0f;
        centred[i] = (exists[i] ? widen(load_shared(y_cells + column * y.step())) : 0.0f) - k[kGMean];
        v[i] = fmaf(centred[i], k[kGScale], k[kGBeta]);
      }
      derive_all(activation, v, slope);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int c = c0 + i * threads;
        const float dv = fmaf(g[i], k[kGFactor], k[kGOffset]) * slope[i];
        const float mean = fmaf(centred[i] * k[kGRstd], k[kGMeanDvX], k[kGMeanDv]);
        if (c < line.columns) store_shared(to + c * line.step(), exists[i] ? k[kGScale] * (dv - mean) : 0.0f);
      }
    }
  }
}

template <class T, Layout layout, int K, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, DepthwiseBackwardTraits<K, S>::kBlocks)
    depthwise_backward_kernel(DepthwiseBackwardParams p) {
  using Traits = DepthwiseBackwardTraits<K, S>;
  constexpr int kInFlight = Traits::kInFlight, kRows = Traits::kRows;
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
  const int raw_bytes = bytes.raw_in + 2 * bytes.raw_out;
  char* const raw = take(2 * raw_bytes);
  const Cells<layout> line{reinterpret_cast<float*>(take(bytes.line)), plan.stage_rows, plan.line_columns,
                           plan.channels};
  const Cells<layout> result{reinterpret_cast<float*>(take(bytes.result)), plan.stage_rows * S, plan.tile_columns,
                             plan.channels};
  float* const table = reinterpret_cast<float*>(take(bytes.table));

  float w[K * K], dw[K * K] = {};
#pragma unroll
  for (int i = 0; i < K * K; ++i) w[i] = at.live ? read(p.w, int64_t(at.channel) * (K * K) + i) : 0.0f;
  const BatchNormConstants none{0.0f, 1.0f, 1.0f, 0.0f};
  const BatchNormConstants bn1 = p.prologue && at.live ? constants_of(p.bn1, at.channel) : none;

  // Rows and columns of x are counted from −top and −left, in groups of S: group b has rows S·b … S·b + S − 1, and the
  // row o of dy meets the groups o … o + kInFlight − 1. The strip has the groups from first_group on.
  const int top_group = shape.top / S, groups_in_image = (shape.top + in.height - 1) / S - top_group + 1;
  const int group_offset = at.strip * plan.strip_rows, first_group = top_group + group_offset;
  const int left_groups = groups_in_image - group_offset;
  const int groups = left_groups < plan.strip_rows ? left_groups : plan.strip_rows;
  const int left_aligned = shape.left - shape.left % S;
  const int first_column = left_aligned + at.tile * plan.tile_columns;  // counted from −left
  const int in_column = first_column - shape.left;
  const int out_column = first_column / S - (kInFlight - 1);
  const int steps = groups + kInFlight - 1;
  const int stages = (steps + plan.stage_rows - 1) / plan.stage_rows;

  // Two stages are in shared memory: the one computed with and the one on its way.
  const auto x_stage = [&](int n, int stage, int slot) {
    const int offset = stage * plan.stage_rows, row = (first_group + offset) * S - shape.top;
    const int left = (groups - offset) * S < plan.in.rows ? (groups - offset) * S : plan.in.rows;
    return Stage<T, layout>{plan.in,
                            in,
                            plan.whole_rows(),
                            reinterpret_cast<T*>(raw + slot * raw_bytes),
                            n,
                            at.first_channel,
                            row,
                            in_column,
                            Window::within(in, row, left < 0 ? 0 : left, in_column, plan.tile_columns)};
  };
  // tensor: 0 for grad, 1 for y.
  const auto dy_stage = [&](int n, int stage, int slot, int tensor) {
    const int offset = stage * plan.stage_rows, row = first_group - (kInFlight - 1) + offset;
    const int left = steps - offset < plan.out.rows ? steps - offset : plan.out.rows;
    return Stage<T, layout>{plan.out,
                            out,
                            plan.whole_rows(),
                            reinterpret_cast<T*>(raw + slot * raw_bytes + bytes.raw_in + tensor * bytes.raw_out),
                            n,
                            at.first_channel,
                            row,
                            out_column,
                            Window::within(out, row, left, out_column, plan.out.columns)};
  };
  const auto issue = [&](int n, int stage, int slot) {
    x_stage(n, stage, slot).copy_from(static_cast<const T*>(p.x), plan.aligned);
#pragma unroll 1
    for (int tensor = 0; tensor < 2; ++tensor) {
      dy_stage(n, stage, slot, tensor).copy_from(static_cast<const T*>(tensor == 0 ? p.grad : p.y), plan.aligned);
    }
  };

  // Threads beyond the tile compute its last columns again, as columns outside the image.
  const int own_column = at.column_thread * kColumns;
  const bool in_tile = own_column < plan.tile_columns;
  const int line_column = (in_tile ? own_column : plan.tile_columns - kColumns) / S;
  float x_rows[kRows][kColumns], a[kRows][kColumns], da[kRows][kColumns];
  float dbeta1 = 0.0f, dgamma1 = 0.0f;

  issue(at.first_image, 0, 0);
  end_batch();
  int n = at.first_image;
  const int last = at.first_image + at.images - 1;
  for (int stage = 0, slot = 0; n <= last; slot ^= 1) {
    const bool image_ends = stage == stages - 1;
    if (!(image_ends && n == last)) issue(n + image_ends, image_ends ? 0 : stage + 1, slot ^ 1);
    end_batch();
    if (stage == 0) fill_gradient_constants(table, p, at, n);
    wait_for_all_but_newest();
    __syncthreads();
    differentiate_rows(dy_stage(n, stage, slot, 0), dy_stage(n, stage, slot, 1), line, at, plan.column_threads, table,
                       p.activation);
    __syncthreads();

    if (stage == 0) {
#pragma unroll
      for (int i = 0; i < kRows * kColumns; ++i) {
        x_rows[i / kColumns][i % kColumns] = a[i / kColumns][i % kColumns] = da[i / kColumns][i % kColumns] = 0.0f;
      }
    }
    const Stage<T, layout> x = x_stage(n, stage, slot);
    const int first_result = stage * plan.stage_rows - (kInFlight - 1);  // the group that the first step completes
#pragma unroll 1
    for (int step = 0; step < plan.stage_rows; ++step) {
      // The rows of x that enter.
#pragma unroll
      for (int j = 0; j < S; ++j) {
        const int image_row = x.row + step * S + j, to = (kInFlight - 1) * S + j;
        const bool row_exists = at.live && in_tile && image_row >= x.window.row && image_row < x.window.row_end;
        const T* const cells = row_exists ? x.cells(at.own, image_row) : nullptr;
        bool exists[kColumns];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int column = in_column + own_column + c;
          exists[c] = row_exists && column >= x.window.column && column < x.window.column_end;
          x_rows[to][c] = exists[c] ? widen(load_shared(cells + column * x.step())) : 0.0f;
          a[to][c] = p.prologue ? bn1(x_rows[to][c]) : x_rows[to][c];
        }
        if (p.prologue) activate_all(p.activation, a[to]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) a[to][c] = exists[c] ? a[to][c] : 0.0f;
      }

      const float* const cells = line.row(at.own, step) + line_column * line.step();
      float dy[Traits::kWindow];
#pragma unroll
      for (int i = 0; i < Traits::kWindow; ++i) dy[i] = load_shared(cells + i * line.step());
#pragma unroll
      for (int ky = 0; ky < K; ++ky) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
#pragma unroll
          for (int kx = 0; kx < K; ++kx) {
            const int i = Traits::window(c, kx);
            if (i < 0) continue;
            da[ky][c] = fmaf(w[ky * K + kx], dy[i], da[ky][c]);
            dw[ky * K + kx] = fmaf(a[ky][c], dy[i], dw[ky * K + kx]);
          }
        }
      }

      // The rows of x that are complete.
      const int group = first_result + step;
      if (group >= 0 && group < groups && at.live && in_tile) {
#pragma unroll
        for (int j = 0; j < S; ++j) {
          const int image_row = (first_group + group) * S + j - shape.top;
          const bool row_exists = image_row >= 0 && image_row < in.height;
          float v[kColumns], slope[kColumns], dx[kColumns];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) v[c] = bn1(x_rows[j][c]);
          if (p.prologue) derive_all(p.activation, v, slope);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const int column = in_column + own_column + c;
            const bool exists = row_exists && column >= 0 && column < in.width;
            dx[c] = p.prologue ? da[j][c] * slope[c] : da[j][c];
            if (p.prologue && exists) {
              dbeta1 += dx[c];
              dgamma1 = fmaf(dx[c], (x_rows[j][c] - bn1.mean) * bn1.rstd, dgamma1);
            }
            if (p.constant1) dx[c] *= bn1.scale;
            store_shared(result.row(at.own, step * S + j) + (own_column + c) * result.step(), dx[c]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const bool moves = r + S < kRows;
          x_rows[r][c] = moves ? x_rows[moves ? r + S : r][c] : 0.0f;
          a[r][c] = moves ? a[moves ? r + S : r][c] : 0.0f;
          da[r][c] = moves ? da[moves ? r + S : r][c] : 0.0f;
        }
      }
    }
    __syncthreads();

    const int begin = first_result < 0 ? 0 : first_result;
    const int end = first_result + plan.stage_rows < groups ? first_result + plan.stage_rows : groups;
    const int result_row = (first_group + first_result) * S - shape.top;
    const Window window = Window::within(in, (first_group + begin) * S - shape.top, end > begin ? (end - begin) * S : 0,
                                         in_column, plan.tile_columns);
    write_window(static_cast<T*>(p.dx), result, in, n, at.first_channel, result_row, in_column, window, plan.aligned);
    stage = image_ends ? 0 : stage + 1;
    n += image_ends;
  }

  __syncthreads();
  float* const scratch = static_cast<float*>(dynamic_shared());
  const int stride = channel_stride<layout>(plan), taps = K * K;
  const int64_t rows = taps + (p.prologue ? 2 : 0);
  float* const partial = p.partial + int64_t(at.part) * rows * shape.channels + at.channel;
  const bool writes = at.column_thread == 0 && at.live;
#pragma unroll
  for (int ky = 0; ky < K; ++ky) {
    float row[K];
#pragma unroll
    for (int kx = 0; kx < K; ++kx) row[kx] = dw[ky * K + kx];
    reduce(row, stride, plan.column_threads, scratch, Add{});
    if (!writes) continue;
#pragma unroll
    for (int kx = 0; kx < K; ++kx) store_one(partial + (ky * K + kx) * shape.channels, row[kx]);
  }
  if (!p.prologue) return;
  float sums[2] = {dbeta1, dgamma1};
  reduce(sums, stride, plan.column_threads, scratch, Add{});
  if (!writes) return;
  store_one(partial + taps * shape.channels, sums[0]);
  store_one(partial + (taps + 1) * shape.channels, sums[1]);
}

}  // namespace effnet_kernels::cuda
