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
  const void *w1, *b1, *w2, *b2;   // (S, C), (S), (C, S), (C)
  const void *w1_packed, *w2_packed;  // [C, S] and [S, C] as packed_matrix.h has them, or null: pooled → scale only
  void *pooled, *hidden, *logits;  // (N, C), (N, S), (N, C); hidden and logits before their activations
  void* scale;                     // (N, C): gate(logits)
  // backward
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

  int64_t images, channels, squeezed;
  Activation activation, gate;
  Buffer<A> w1, b1, w2, b2, pooled, hidden, logits, scale;

  static Excite make(const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2, int64_t images,
                     int64_t channels, Activation activation, Activation gate) {
    const int64_t squeezed = w1.size(0);
    return {images,
            channels,
            squeezed,
            activation,
            gate,
            read_rows<A>(w1, squeezed, channels),
            read_rows<A>(b1, 1, squeezed),
            read_rows<A>(w2, channels, squeezed),
            read_rows<A>(b2, 1, channels),
            Buffer<A>(0),
            padded_rows<A>(images, squeezed),
            padded_rows<A>(images, channels),
            padded_rows<A>(images, channels)};
  }

  // With what the forward call saved.
  void restore(const Tensor& saved_pooled, const Tensor& saved_hidden, const Tensor& saved_logits) {
    pooled = read_rows<A>(saved_pooled, images, channels);
    hidden = read_rows<A>(saved_hidden, images, squeezed);
    logits = read_rows<A>(saved_logits, images, channels);
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
    p.hidden = hidden.data();
    p.logits = logits.data();
    p.scale = scale.data();
    return p;
  }

  // Means from the per-part sums of z, then both layers.
  void run(Buffer<A> z_sums, int64_t parts_per_image, int64_t pixels) {
    pooled = sum_rows(std::move(z_sums), images, parts_per_image, padded_channels(channels));
    for (int64_t i = 0; i < pooled.size(); ++i) pooled[i] /= A(pixels);
    if (images < kImagesOfProduct) return excite(params());
    const Buffer<A> w1_packed = pack_transpose(w1.data(), padded_channels(channels), channels, squeezed);
    const Buffer<A> w2_packed = pack_transpose(w2.data(), padded_channels(squeezed), squeezed, channels);
    ExciteParams p = params();
    p.w1_packed = w1_packed.data();
    p.w2_packed = w2_packed.data();
    excite(p);
  }
};

// The gradients that come out of SE's backward.
template <class A>
struct ExciteGradient {
  Buffer<A> dpooled, dw1, db1, dw2, db2;

  static ExciteGradient from(Excite<A>& forward, const Buffer<A>& dscale) {
    const int64_t images = forward.images, channels = forward.channels, squeezed = forward.squeezed;
    Buffer<A> dlogits = padded_rows<A>(images, channels), dhidden = padded_rows<A>(images, squeezed),
              activated = padded_rows<A>(images, squeezed);
    ExciteGradient g{padded_rows<A>(images, channels), padded_rows<A>(squeezed, channels), padded_rows<A>(1, squeezed),
                     padded_rows<A>(channels, squeezed), padded_rows<A>(1, channels)};
    ExciteParams p = forward.params();
    p.dscale = dscale.data();
    p.dlogits = dlogits.data();
    p.dhidden = dhidden.data();
    p.activated = activated.data();
    p.dpooled = g.dpooled.data();
    p.dw1 = g.dw1.data();
    p.db1 = g.db1.data();
    p.dw2 = g.dw2.data();
    p.db2 = g.db2.data();
    excite_backward(p);
    return g;
  }
};

}  // namespace effnet_kernels::cpu
