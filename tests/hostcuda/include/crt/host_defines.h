// Stands in for the toolkit's crt/host_defines.h, which pip's package of CUDA headers leaves out: what g++ makes of
// CUDA's qualifiers. The guard is the toolkit's own, so that its file adds nothing where both are found.
#ifndef __HOST_DEFINES_H__
#define __HOST_DEFINES_H__

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)

// Blocks run one after another, so one variable serves them all. GCC gives up a section attribute in a template, but
// keeps this one, and runtime/shared_memory.ld gathers what carries it.
#define __shared__ static __attribute__((noinit))

// What the toolkit's headers ask for besides.
#define __annotate__(a)
#define __location__(a)
#define __no_return__ __attribute__((noreturn))
#define __specialization_static
#define __nv_pure__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL

#endif
