// The shared memory of the block that runs: dynamic between two guard zones, static where the kernels' variables lie.
#pragma once

#include <cstddef>
#include <string>

namespace hostcuda {

void begin_shared_memory(std::size_t dynamic_bytes);
// Every byte 0xff: a NaN of every floating-point type.
void fill_shared_memory();
// What a guard zone shows to have been written; empty where none was.
std::string describe_damage();
void end_shared_memory();

}  // namespace hostcuda
