// The source of every order that CUDA leaves open.
#pragma once

#include <cstdint>

namespace hostcuda {

class Random {
 public:
  void seed(std::uint64_t value) { state_ = value; }

  // One of 0 ... count - 1.
  std::uint32_t below(std::uint32_t count) { return static_cast<std::uint64_t>(next()) * count >> 32; }

  std::uint32_t next() {
    state_ += 0x9e3779b97f4a7c15;
    std::uint64_t mixed = state_;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    return static_cast<std::uint32_t>(mixed >> 32);
  }

 private:
  std::uint64_t state_ = 0;
};

extern Random orders;

}  // namespace hostcuda
