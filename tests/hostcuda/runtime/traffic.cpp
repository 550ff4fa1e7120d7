#include "traffic.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include "block.h"

namespace hostcuda {

namespace {

struct Announced : Buffer {
  std::string name;
  std::vector<std::uint8_t> read_map, written_map;
  std::size_t order;
};

Buffer nowhere;
// By address.
std::vector<std::unique_ptr<Announced>> buffers;

std::uintptr_t end_of(const Buffer& buffer) { return buffer.region.begin + buffer.region.bytes; }

// The first buffer that ends behind `address`.
auto behind(std::uintptr_t address) {
  return std::upper_bound(buffers.begin(), buffers.end(), address,
                          [](std::uintptr_t value, const auto& buffer) { return value < end_of(*buffer); });
}

// The buffer that is next to `address`; there has to be one.
const Announced& nearest(std::uintptr_t address) {
  const auto next = behind(address);
  if (next == buffers.end()) return *buffers.back();
  if (next == buffers.begin() || (*next)->region.begin <= address) return **next;
  const Announced &before = **(next - 1), &after = **next;
  return address - end_of(before) < after.region.begin - address ? before : after;
}

std::string describe_place(std::uintptr_t address, std::size_t bytes) {
  if (dynamic_region.holds(address, 1) || static_region.holds(address, 1)) return "the address is in shared memory";
  if (buffers.empty()) return "no buffer is announced";
  const Announced& buffer = nearest(address);
  const auto offset = static_cast<std::ptrdiff_t>(address - buffer.region.begin);
  const std::string nearby = buffer.region.holds(address, bytes) ? "buffer '" : "nearest is buffer '";
  return nearby + buffer.name + "' of " + std::to_string(buffer.region.bytes) + " bytes, offset " +
         std::to_string(offset);
}

// Null where the access is refused; the refusal is set then.
Buffer* find(const void* p, std::size_t bytes, std::size_t alignment, const char* kind,
             const std::source_location& where) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto found = behind(address);
  const bool inside = found != buffers.end() && (*found)->region.holds(address, bytes);
  if (inside && address % alignment == 0) return found->get();
  set_refusal("global " + std::string(kind) + " of " + std::to_string(bytes) + " bytes at " + describe(where) +
              (inside ? " is misaligned, " + std::to_string(address % alignment) + " past a multiple of " +
                            std::to_string(alignment)
                      : std::string(" is out of bounds")) +
              ": " + describe_place(address, bytes));
  return nullptr;
}

}  // namespace

Buffer *last_read = &nowhere, *last_written = &nowhere;

Buffer* find_readable(const void* p, std::size_t bytes, std::size_t alignment, const std::source_location& where) {
  Buffer* found = find(p, bytes, alignment, "read", where);
  if (found == nullptr) abandon();
  return found;
}

Buffer* find_writable(const void* p, std::size_t bytes, std::size_t alignment, const std::source_location& where) {
  Buffer* found = find(p, bytes, alignment, "write", where);
  if (found != nullptr && found->writable) return found;
  if (found != nullptr) {
    set_refusal("global write of " + std::to_string(bytes) + " bytes at " + describe(where) +
                " to a read-only buffer: " + describe_place(reinterpret_cast<std::uintptr_t>(p), bytes));
  }
  abandon();
}

void announce(const char* name, const void* p, std::size_t bytes, bool writable) {
  if (bytes == 0) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  const auto place = behind(begin);
  last_read = last_written = &nowhere;
  if (place != buffers.end() && (*place)->region.begin < begin + bytes) {
    Announced& other = **place;
    if (other.region.begin != begin || other.region.bytes != bytes) {
      throw std::runtime_error("buffer '" + std::string(name) + "' overlaps '" + other.name +
                               "', which was announced before and not withdrawn");
    }
    other.name = name;
    other.writable = writable;
    return;
  }
  auto added = std::make_unique<Announced>();
  const std::size_t sectors = ((begin + bytes - 1) >> Buffer::sector_bits) - (begin >> Buffer::sector_bits) + 1;
  added->region = {begin, bytes};
  added->writable = writable;
  added->name = name;
  added->read_map.resize(sectors);
  added->written_map.resize(sectors);
  added->sectors_read = added->read_map.data();
  added->sectors_written = added->written_map.data();
  added->epoch = 1;
  added->order = buffers.size();
  buffers.insert(place, std::move(added));
}

void withdraw_all() {
  last_read = last_written = &nowhere;
  buffers.clear();
}

void begin_traffic() {
  for (const auto& buffer : buffers) {
    buffer->read = buffer->written = {};
    buffer->wide_accesses = buffer->narrow_accesses = 0;
    if (++buffer->epoch == 0) {
      std::ranges::fill(buffer->read_map, std::uint8_t{0});
      std::ranges::fill(buffer->written_map, std::uint8_t{0});
      buffer->epoch = 1;
    }
  }
}

std::vector<BufferTraffic> collect_traffic() {
  std::vector<const Announced*> ordered;
  for (const auto& buffer : buffers) ordered.push_back(buffer.get());
  std::ranges::sort(ordered, {}, &Announced::order);
  std::vector<BufferTraffic> collected;
  for (const Announced* buffer : ordered) {
    auto same = std::ranges::find(collected, buffer->name, &BufferTraffic::name);
    if (same == collected.end()) same = collected.insert(same, {.name = buffer->name, .read = {}, .written = {}});
    same->read.bytes += buffer->read.bytes;
    same->read.sectors += buffer->read.sectors;
    same->written.bytes += buffer->written.bytes;
    same->written.sectors += buffer->written.sectors;
    same->wide_accesses += buffer->wide_accesses;
    same->narrow_accesses += buffer->narrow_accesses;
  }
  return collected;
}

void count_fill(const void* p, std::size_t bytes, const std::source_location& where) {
  if (bytes == 0) return;
  Buffer* buffer = find_writable(p, bytes, 1, where);
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  buffer->written.bytes += bytes;
  buffer->written.sectors += ((begin + bytes - 1) >> Buffer::sector_bits) - (begin >> Buffer::sector_bits) + 1;
}

}  // namespace hostcuda
