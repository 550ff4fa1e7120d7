// The depthwise kernels of cpu.h over units [begin, end). Included per instruction set by foreach_capability.h.

#include "depthwise_conv_bn_act/cpu_rows.h"
#include "depthwise_conv_bn_act/cpu_forward.h"
#include "depthwise_conv_bn_act/cpu_backward.h"

inline void depthwise_forward_units(const DepthwiseForwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) {
    dispatch_layout(p.layout, [&](auto layout) {
      ForwardUnit<typename decltype(dtype)::type, layout()> unit(p);
      for (int64_t i = begin; i < end; ++i) unit.run(i);
    });
  });
}

inline void depthwise_backward_units(const DepthwiseBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) {
    dispatch_layout(p.layout, [&](auto layout) {
      BackwardUnit<typename decltype(dtype)::type, layout()> unit(p);
      for (int64_t i = begin; i < end; ++i) unit.run(i);
    });
  });
}
