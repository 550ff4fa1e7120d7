// Asynchronous copies to shared memory. A copy is checked and counted where it is issued, and done only by the wait
// that covers its group, so that shared memory keeps its NaN where a wait is missing.
#pragma once

#include "cuda_runtime.h"

#pragma GCC visibility push(hidden)

void __pipeline_memcpy_async(void* shared, const void* global, std::size_t bytes, std::size_t zero_filled = 0,
                             const std::source_location& where = std::source_location::current());
void __pipeline_commit();
void __pipeline_wait_prior(std::size_t groups);

#pragma GCC visibility pop
