// Runs an MBConv block's steps over images and threads. A batch is shared among threads by images, each of which passes
// through the block as a whole and stays in the caches; few images are shared by strips of blocks of channels, then by
// rows.
#include "common/cpu/buffer.h"
#include "common/cpu/packed_matrix.h"
#include "common/cpu/parallel.h"
#include "mbconv_inference/cpu.h"
#define EK_WITH_BFLOAT16
#define EK_KERNEL_FILE "mbconv_inference/cpu_kernel.h"
#include "common/cpu/foreach_capability.h"

namespace effnet_kernels::cpu {
namespace {

constexpr int64_t kManyImages = 8;

struct Steps {
  decltype(&baseline::mbconv_widen) widen = EK_SELECT(mbconv_widen);
  decltype(&baseline::mbconv_channels) channels = EK_SELECT(mbconv_channels);
  decltype(&baseline::mbconv_excite) excite = EK_SELECT(mbconv_excite);
  decltype(&baseline::mbconv_scale) scale = EK_SELECT(mbconv_scale);
  decltype(&baseline::mbconv_scale_weights) scale_weights = EK_SELECT(mbconv_scale_weights);
  decltype(&baseline::mbconv_project) project = EK_SELECT(mbconv_project);

  explicit Steps(bool bfloat16_products) {
    if (!bfloat16_products) return;
    channels = EK_SELECT_BFLOAT16(mbconv_channels);
    scale = EK_SELECT_BFLOAT16(mbconv_scale);
    scale_weights = EK_SELECT_BFLOAT16(mbconv_scale_weights);
    project = EK_SELECT_BFLOAT16(mbconv_project);
  }
};

// Scratch memory that one image after the other uses.
struct Workspace {
  const MBConvInferenceParams& p;
  int64_t x_size = p.shape.pixels() * p.in_channels;
  int64_t out_size = p.shape.out_pixels() * p.out_channels;
  int64_t element = p.dtype == DType::float32 ? 4 : 2;
  bool widens = p.dtype != DType::float32 && !p.bfloat16_products;
  Buffer<float> z = Buffer<float>::unfilled(p.shape.out_pixels() * p.row());
  Buffer<float> vectors = Buffer<float>::unfilled((p.strips() + 1) * p.row());
  Buffer<float> x = Buffer<float>::unfilled(widens ? x_size : 0);
  Buffer<float> project = Buffer<float>::unfilled(p.scales_weights() ? p.project_size() : 0);

  MBConvImage image(const Steps& steps, int64_t n) {
    const void* const stored = static_cast<const char*>(p.x) + n * x_size * element;
    if (widens) steps.widen(p, stored, x_size, x.data());
    return {stored,
            widens ? x.data() : stored,
            z.data(),
            vectors.data(),
            vectors.data() + p.strips() * p.row(),
            project.data(),
            static_cast<char*>(p.out) + n * out_size * element};
  }
};

}  // namespace

void mbconv_inference(const MBConvInferenceParams& p) {
  const Steps steps(p.bfloat16_products);
  if (p.shape.images >= kManyImages) {
    parallel_over(p.shape.images, INT64_MAX, [&](int64_t begin, int64_t end) {
      Workspace workspace{p};
      for (int64_t n = begin; n < end; ++n) {
        const MBConvImage image = workspace.image(steps, n);
        steps.channels(p, image, 0, p.blocks() * p.strips());
        if (p.reduce) {
          steps.excite(p, image);
          if (p.scales_weights()) {
            steps.scale_weights(p, image);
          } else {
            steps.scale(p, image, 0, p.shape.out_pixels());
          }
        }
        steps.project(p, image, 0, p.project_units());
      }
    });
    return;
  }
  if (p.shape.images == 0) return;
  Workspace workspace{p};
  const int64_t strip = p.shape.pixels() * p.in_channels * MBConvInferenceParams::kBlockVectors / p.strips();
  const int64_t unit = p.shape.out_pixels() * p.out_channels * p.vectors() / p.project_units();
  for (int64_t n = 0; n < p.shape.images; ++n) {
    const MBConvImage image = workspace.image(steps, n);
    parallel_over(p.blocks() * p.strips(), strip,
                  [&](int64_t begin, int64_t end) { steps.channels(p, image, begin, end); });
    if (p.reduce) {
      steps.excite(p, image);
      if (p.scales_weights()) {
        steps.scale_weights(p, image);
      } else {
        parallel_over(p.shape.out_pixels(), p.row(),
                      [&](int64_t begin, int64_t end) { steps.scale(p, image, begin, end); });
      }
    }
    parallel_over(p.project_units(), unit, [&](int64_t begin, int64_t end) { steps.project(p, image, begin, end); });
  }
}

}  // namespace effnet_kernels::cpu
