// Squeeze-and-excite's two small layers on CPU, forward and backward: everything between the pooling pass and the
// scaling pass. Matrices are [rows, padded columns] as in common/cpu/passes.h, zero in the padding.
#pragma once

#include <utility>

#include "common/activation.h"
#include "common/cpu/buffer.h"
#include "common/cpu/channels.h"
#include "common/cpu/packed_matrix.h"
#include "common/tensor.h"

namespace effnet_kernels::cpu {

struct ExciteParams {
  DType dtype;  // of the arrays: float32 or float64
  Activation activation, gate;
  int64_t images, channels, squeezed;
  const void *w1, *b1, *w2, *b2;      // (S, C), (S), (C, S), (C)
  const void *w1_packed, *w2_packed;  // their transposes as packed_matrix.h has them, for many images; or null
  const void* pooled;                 // (N, C)
  void *hidden, *logits;              // (N, S), (N, C): before their activations
  void* scale;                        // (N, C): gate(logits)
  // backward
  const void *saved_hidden, *saved_logits;
  const void* dscale;                   // (N, C)
  void *dlogits, *dhidden, *activated;  // (N, C), (N, S), (N, S)
  void* dpooled;                        // (N, C)
  void *dw1, *db1, *dw2, *db2;
};
// pooled → hidden, logits, scale.
void excite(const ExciteParams&);
// scale from saved logits.
void excite_scale(const ExciteParams&);
// dscale → dpooled and the weights' gradients.
void excite_backward(const ExciteParams&);

// The arrays behind ExciteParams.
template <class A>
struct Excite {
  // From as many images on, packing a weight takes less time than reading it once for each.
  static constexpr int64_t kImagesOfProduct = 8;

  // What backward needs of the forward pass.
  struct Vectors {
    Tensor pooled, hidden, logits;
  };

  int64_t images, channels, squeezed;
  Activation activation, gate;
  Rows<A> w1, b1, w2, b2, pooled, hidden, logits;  // the last three in backward
  Buffer<A> scale;

  static Excite make(const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2, int64_t images,
                     int64_t channels, Activation activation, Activation gate) {
    const int64_t squeezed = w1.size(0);
    return {images,
            channels,
            squeezed,
            activation,
            gate,
            {w1, squeezed, channels},
            {b1, 1, squeezed},
            {w2, channels, squeezed},
            {b2, 1, channels},
            {},
            {},
            {},
            padded_rows<A>(images, channels)};
  }

  // With what the forward call saved.
  void restore(const Tensor& saved_pooled, const Tensor& saved_hidden, const Tensor& saved_logits) {
    pooled = {saved_pooled, images, channels};
    hidden = {saved_hidden, images, squeezed};
    logits = {saved_logits, images, channels};
    excite_scale(params());
  }

  ExciteParams params() {
    ExciteParams p{};
    p.dtype = sizeof(A) == 8 ? DType::float64 : DType::float32;
    p.activation = activation;
    p.gate = gate;
    p.images = images;
    p.channels = channels;
    p.squeezed = squeezed;
    p.w1 = w1.data();
    p.b1 = b1.data();
    p.w2 = w2.data();
    p.b2 = b2.data();
    p.pooled = pooled.data();
    p.saved_hidden = hidden.data();
    p.saved_logits = logits.data();
    p.scale = scale.data();
    return p;
  }

  // Means from the sums of z per part, then both layers.
  Vectors run(const Tensor& like, const Buffer<A>& z_sums, int64_t parts_per_image, int64_t pixels) {
    const auto vectors = [&](int64_t columns) {
      return ResultRows<A>(empty_vector(like, {images, columns}), images, columns);
    };
    ResultRows<A> means = vectors(channels), before_activation = vectors(squeezed), before_gate = vectors(channels);
    const int64_t row = padded_channels(channels);
    A* const mean = means.data();
    sum_rows_into(z_sums.data(), images, parts_per_image, row, mean);
    for (int64_t i = 0; i < images * row; ++i) mean[i] /= A(pixels);
    ExciteParams p = params();
    p.pooled = mean;
    p.hidden = before_activation.data();
    p.logits = before_gate.data();
    Buffer<A> w1_packed(0), w2_packed(0);
    if (images >= kImagesOfProduct) {
      w1_packed = pack_transpose(w1.data(), row, channels, squeezed);
      w2_packed = pack_transpose(w2.data(), padded_channels(squeezed), squeezed, channels);
      p.w1_packed = w1_packed.data();
      p.w2_packed = w2_packed.data();
    }
    excite(p);
    return {means.tensor(), before_activation.tensor(), before_gate.tensor()};
  }
};

// The gradients that come out of SE's backward.
template <class A>
struct ExciteGradient {
  Buffer<A> dpooled;
  Tensor dw1, db1, dw2, db2;

  // Of these weights, from dscale [N, padded channels].
  static ExciteGradient from(Excite<A>& forward, const A* dscale, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                             const Tensor& b2) {
    const int64_t images = forward.images, channels = forward.channels, squeezed = forward.squeezed;
    Buffer<A> dlogits = padded_rows<A>(images, channels), dhidden = padded_rows<A>(images, squeezed),
              activated = padded_rows<A>(images, squeezed), dpooled = padded_rows<A>(images, channels);
    ResultRows<A> dw1 = gradient_rows<A>(w1, squeezed, channels), db1 = gradient_rows<A>(b1, 1, squeezed),
                  dw2 = gradient_rows<A>(w2, channels, squeezed), db2 = gradient_rows<A>(b2, 1, channels);
    ExciteParams p = forward.params();
    p.dscale = dscale;
    p.dlogits = dlogits.data();
    p.dhidden = dhidden.data();
    p.activated = activated.data();
    p.dpooled = dpooled.data();
    p.dw1 = dw1.data();
    p.db1 = db1.data();
    p.dw2 = dw2.data();
    p.db2 = db2.data();
    excite_backward(p);
    return {std::move(dpooled), dw1.tensor(), db1.tensor(), dw2.tensor(), db2.tensor()};
  }
};

}  // namespace effnet_kernels::cpu
