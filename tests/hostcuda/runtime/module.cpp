// The runtime's controls for Python. A module that has functions of its own defines hostcuda_bind().
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device.h"
#include "launch.h"
#include "random.h"

namespace py = pybind11;

[[gnu::weak]] void hostcuda_bind(py::module_& module);

namespace {

py::tuple tuple_of(const dim3& extent) { return py::make_tuple(extent.x, extent.y, extent.z); }

py::dict dict_of(const hostcuda::BufferTraffic& buffer) {
  using namespace py::literals;
  return py::dict("read_bytes"_a = buffer.read.bytes, "read_sectors"_a = buffer.read.sectors,
                  "written_bytes"_a = buffer.written.bytes, "written_sectors"_a = buffer.written.sectors,
                  "wide_accesses"_a = buffer.wide_accesses, "narrow_accesses"_a = buffer.narrow_accesses);
}

py::dict dict_of(const hostcuda::Record& record) {
  using namespace py::literals;
  py::dict buffers;
  for (const hostcuda::BufferTraffic& buffer : record.buffers) buffers[py::str(buffer.name)] = dict_of(buffer);
  return py::dict("kernel"_a = record.kernel, "grid"_a = tuple_of(record.grid), "block"_a = tuple_of(record.block),
                  "dynamic_shared_bytes"_a = record.dynamic_shared_bytes, "buffers"_a = buffers);
}

py::list launches() {
  py::list all;
  for (const hostcuda::Record& record : hostcuda::records) all.append(dict_of(record));
  return all;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("seed", [](std::uint64_t value) { hostcuda::orders.seed(value); }, py::arg("value"));
  module.def("launches", &launches);
  module.def("reset_launches", [] { hostcuda::records.clear(); });
  module.def("set_device",
             [](const py::kwargs& limits) { hostcuda::set_device(limits.cast<std::map<std::string, int>>()); });
  module.def(
      "announce",
      [](const std::string& name, std::uintptr_t address, std::size_t bytes, bool writable) {
        hostcuda::announce(name.c_str(), reinterpret_cast<const void*>(address), bytes, writable);
      },
      py::arg("name"), py::arg("address"), py::arg("bytes"), py::arg("writable"));
  module.def("withdraw_all", &hostcuda::withdraw_all);
  if (hostcuda_bind != nullptr) hostcuda_bind(module);
}
