// The depthwise kernels of cpu.h over units [begin, end). Included per instruction set by foreach_capability.h.

#include "depthwise_conv_bn_act/cpu_taps.h"
#include "depthwise_conv_bn_act/cpu_plane.h"
#include "depthwise_conv_bn_act/cpu_forward_nchw.h"
#include "depthwise_conv_bn_act/cpu_backward_nchw.h"
#include "depthwise_conv_bn_act/cpu_slice.h"
#include "depthwise_conv_bn_act/cpu_forward_nhwc.h"
#include "depthwise_conv_bn_act/cpu_backward_nhwc.h"

template <class Unit, class Params>
void run_units(const Params& p, int64_t begin, int64_t end) {
  Unit unit(p);
  for (int64_t i = begin; i < end; ++i) unit.run(i);
}

inline void depthwise_forward_units(const DepthwiseForwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    if (p.layout == Layout::nhwc) {
      run_units<ForwardSlice<T>>(p, begin, end);
    } else {
      run_units<ForwardPlane<T>>(p, begin, end);
    }
  });
}

inline void depthwise_backward_units(const DepthwiseBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    if (p.layout == Layout::nhwc) {
      run_units<BackwardSlice<T>>(p, begin, end);
    } else {
      run_units<BackwardPlane<T>>(p, begin, end);
    }
  });
}
