// Stands in for the toolkit's cuda_runtime.h: its vector and driver types, this runtime's device functions and host
// API.
#pragma once

// libstdc++ spells an attribute __noinline__, which host_defines.h makes a macro: what uses it has to come first.
#include <memory>

// vector_functions.h would declare the toolkit's host API, with C linkage; the one here throws, and is linked in place.
#define __CUDA_RUNTIME_API_H__
#define __CUDA_INCLUDE_COMPILER_INTERNAL_HEADERS__

#include "crt/host_defines.h"
#include <vector_types.h>
#include <vector_functions.h>
#include <driver_types.h>

#include "hostcuda.h"
#include "hostcuda/global_memory.h"
#include "hostcuda/host_api.h"
#include "hostcuda/math.h"
#include "hostcuda/threads.h"
