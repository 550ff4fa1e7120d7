#include "launch.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>
#include "block.h"
#include "device.h"
#include "random.h"
#include "shared_memory.h"

namespace hostcuda {

std::vector<Record> records;

namespace {

std::optional<std::string> next_name;

std::string demangle(const char* mangled) {
  int status = 0;
  char* readable = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 ? readable : mangled;
  std::free(readable);
  return name;
}

std::string name_of(const void* kernel, const std::type_info& type) {
  if (next_name.has_value()) return *std::exchange(next_name, std::nullopt);
  Dl_info symbol;
  if (dladdr(kernel, &symbol) != 0 && symbol.dli_saddr == kernel) return demangle(symbol.dli_sname);
  return "kernel " + demangle(type.name());
}

std::string describe(const dim3& extent) { return hostcuda::describe(uint3{extent.x, extent.y, extent.z}); }

// Empty where the launch may run.
std::string reason_against(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z, shared = config.dynamicSmemBytes;
  const auto most_threads = std::min(kMostThreads, static_cast<unsigned>(device.threads_per_block));
  const auto optin = static_cast<std::size_t>(device.shared_memory_per_block_optin);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "grid " + describe(grid) + " is empty";
  if (threads == 0) return "block " + describe(block) + " is empty";
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) {
    return "grid " + describe(grid) + " is too large: at most (2147483647, 65535, 65535)";
  }
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > most_threads) {
    return "block " + describe(block) + " has " + std::to_string(threads) + " threads: at most (1024, 1024, 64) and " +
           std::to_string(most_threads) + " in all";
  }
  if (shared > optin) {
    return std::to_string(shared) + " bytes of dynamic shared memory: the device has at most " + std::to_string(optin) +
           " for a block";
  }
  if (shared > dynamic_shared_limit(kernel)) {
    return std::to_string(shared) + " bytes of dynamic shared memory: above " +
           std::to_string(dynamic_shared_limit(kernel)) +
           " cudaFuncSetAttribute(cudaFuncAttributeMaxDynamicSharedMemorySize) has to ask for them";
  }
  return config.numAttrs == 0 ? "" : "launch attributes are not simulated";
}

// Every block once, in an order of its own for every launch: steps of a random length that visits all.
class BlockOrder {
 public:
  explicit BlockOrder(const dim3& grid)
      : grid_(grid), count_(std::uint64_t{grid.x} * grid.y * grid.z), next_(orders.next() % count_) {
    do {
      step_ = (std::uint64_t{orders.next()} << 16 ^ orders.next()) % count_;
    } while (std::gcd(step_, count_) != 1);
  }

  std::uint64_t count() const { return count_; }

  uint3 take() {
    const auto x = static_cast<unsigned>(next_ % grid_.x), y = static_cast<unsigned>(next_ / grid_.x % grid_.y),
               z = static_cast<unsigned>(next_ / grid_.x / grid_.y);
    next_ = (next_ + step_) % count_;
    return {x, y, z};
  }

 private:
  dim3 grid_;
  std::uint64_t count_, next_, step_ = 0;
};

void run_blocks(const cudaLaunchConfig_t& config, const Kernel& kernel) {
  BlockOrder order(config.gridDim);
  for (std::uint64_t i = 0; i < order.count(); ++i) {
    fill_shared_memory();
    run_block(kernel, order.take());
    const std::string damage = describe_damage();
    if (!damage.empty())
      throw std::runtime_error(kernel.name + ", block " + hostcuda::describe(blockIdx) + ": " + damage);
  }
}

// There is one set of threads, and it serves one launch after another.
class Launch {
 public:
  explicit Launch(const cudaLaunchConfig_t& config) {
    if (running_.test_and_set())
      throw std::runtime_error("a launch while another runs: from another thread, or a kernel");
    begin_traffic();
    begin_threads(config.gridDim, config.blockDim);
    begin_shared_memory(config.dynamicSmemBytes);
  }
  ~Launch() {
    end_shared_memory();
    end_threads();
    running_.clear();
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

 private:
  static inline std::atomic_flag running_;
};

}  // namespace

void name_next_launch(const char* name) { next_name = name; }

void launch(const cudaLaunchConfig_t& config, const void* kernel, const std::type_info& type, void (*run)(void*),
            void* call) {
  const Kernel named{name_of(kernel, type), run, call};
  const std::string reason = reason_against(config, kernel);
  if (!reason.empty()) throw std::runtime_error(named.name + ": " + reason);
  const Launch running(config);
  run_blocks(config, named);
  records.push_back({named.name, config.gridDim, config.blockDim, config.dynamicSmemBytes, collect_traffic()});
}

}  // namespace hostcuda

cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t) {
  using namespace hostcuda;
  begin_traffic();
  count_fill(p, bytes, std::source_location::current());
  std::memset(p, value, bytes);
  records.push_back({"cudaMemsetAsync", dim3(0, 0, 0), dim3(0, 0, 0), 0, collect_traffic()});
  return cudaSuccess;
}
