// Tensors over the blocks of block_cache.h.
#include "common/cpu/allocate.h"

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include "common/cpu/block_cache.h"

namespace effnet_kernels::cpu {
namespace {

// Of a tensor in a block, in bytes. Smaller ones the allocator keeps by itself, and some may live for long.
constexpr int64_t kSmallestTensor = int64_t(1) << 18;

// torch_from_blob of torch 2.11, which is looked up because the library also runs on 2.10.
using FromBlob = AOTITorchError (*)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t,
                                    AtenTensorHandle*, int32_t, const uint8_t*, int64_t, void (*)(void*, void*), void*);
FromBlob from_blob() {
  static const auto found = reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
  return found;
}

// How many bytes were freed.
int64_t release_cached_memory() { return BlockCache::instance().release() + BlockCache::of_gradients().release(); }

int64_t element_size(const Tensor& t) {
  return dispatch_dtype(dtype_of(t), [](auto dtype) { return int64_t(sizeof(typename decltype(dtype)::type)); });
}

bool belongs_in_block(int64_t bytes) { return bytes >= kSmallestTensor && from_blob() != nullptr; }

// A tensor of `bytes` in the dtype of `like`.
Tensor tensor_in_block(BlockCache& blocks, const Tensor& like, int64_t bytes, const Sizes& sizes,
                       const Sizes& strides) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  void* const block = blocks.take(bytes);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = from_blob()(
      block, int64_t(sizes.size()), sizes.data(), strides.data(), 0, to<int32_t>(from(like.scalar_type())),
      to<int32_t>(from(like.device().type())), like.device().index(), &handle,
      to<int32_t>(from(torch::headeronly::Layout::Strided)), nullptr, 0,
      [](void* data, void* owner) { static_cast<BlockCache*>(owner)->give_back(data); }, &blocks);
  if (error != 0) {
    blocks.give_back(block);
    STD_TORCH_CHECK(false, "torch_from_blob failed for ", bytes, " bytes");
  }
  return Tensor(handle);
}

}  // namespace

Tensor allocate_activations(const Tensor& like, const Sizes& sizes, Layout layout) {
  int64_t bytes = element_size(like);
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(!__builtin_mul_overflow(bytes, size, &bytes), "too many elements for an output");
  }
  if (!belongs_in_block(bytes)) return empty_activations(like, sizes, layout);
  return tensor_in_block(BlockCache::instance(), like, bytes, sizes, dense_strides(sizes, layout));
}

Tensor allocate_gradient(const Tensor& parameter) {
  if (!parameter.is_contiguous()) return torch::stable::empty_like(parameter);
  const int64_t bytes = parameter.numel() * element_size(parameter);
  Sizes sizes;
  for (int d = 0; d < parameter.dim(); ++d) sizes.push_back(parameter.size(d));
  if (!belongs_in_block(bytes)) return empty_dense(parameter, parameter.scalar_type(), sizes);
  return tensor_in_block(BlockCache::of_gradients(), parameter, bytes, sizes, dense_strides(sizes, Layout::nchw));
}

}  // namespace effnet_kernels::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_kernels, CompositeExplicitAutograd, m) {
  m.impl("release_cached_memory", TORCH_BOX(&effnet_kernels::cpu::release_cached_memory));
}
