// Shuffles, votes and barriers of a warp.
#pragma once

namespace hostcuda {

void forget_warp_operations();

// Where nobody can go on: sets the refusal if threads wait in a warp operation.
bool set_warp_deadlock();

}  // namespace hostcuda
