// Whether Python objects are still as they were, for effnet/watch.py: what its PythonWatch does, in less than half of the
// time where weights have driven everything that is looked at out of the cache. No torch in it, as in plan.cpp.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace effnet_kernels {
namespace {

constexpr std::uintptr_t kLine = 64;
// Of a tensor, as Python has it and as C++ has it, and of its storage; more is not looked at.
constexpr std::uintptr_t kObjectBytes = 128, kTensorBytes = 256, kStorageBytes = 128;

class Watch {
 public:
  Watch(const py::list& places, const py::list& sized, const py::list& tensors) {
    for (const py::handle place : places) {
      const auto pair = place.cast<std::pair<py::dict, py::str>>();
      PyObject* const value = PyDict_GetItem(pair.first.ptr(), pair.second.ptr());
      places_.push_back({pair.first, pair.second, py::reinterpret_borrow<py::object>(value)});
    }
    for (const py::handle mapping : sized) {
      sized_.push_back({mapping.cast<py::dict>(), PyDict_Size(mapping.ptr())});
    }
    for (const py::handle tensor : tensors) {
      tensors_.push_back({py::reinterpret_borrow<py::object>(tensor), version(tensor), address(tensor)});
      add_lines(reinterpret_cast<std::uintptr_t>(tensor.ptr()), kObjectBytes);
      add_lines(tensor.attr("_cdata").cast<std::uintptr_t>(), kTensorBytes);
      add_lines(tensor.attr("untyped_storage")().attr("_cdata").cast<std::uintptr_t>(), kStorageBytes);
    }
  }

  bool unchanged() const {
    // All at once: one after the other, each look would wait for memory several times.
    for (const Place& place : places_) __builtin_prefetch(place.mapping.ptr());
    for (const auto& [mapping, size] : sized_) __builtin_prefetch(mapping.ptr());
    for (const std::uintptr_t line : lines_) __builtin_prefetch(reinterpret_cast<const void*>(line));
    for (const Place& place : places_) {
      if (PyDict_GetItemWithError(place.mapping.ptr(), place.name.ptr()) != place.value.ptr()) return false;
    }
    for (const auto& [mapping, size] : sized_) {
      if (PyDict_Size(mapping.ptr()) != size) return false;
    }
    for (const Held& held : tensors_) {
      if (version(held.tensor) != held.version || address(held.tensor) != held.address) return false;
    }
    return true;
  }

 private:
  struct Place {
    py::dict mapping;
    py::str name;
    py::object value;  // null where there is none
  };
  struct Held {
    py::object tensor;
    std::int64_t version, address;
  };

  static std::int64_t number(PyObject* value) {
    const auto owned = py::reinterpret_steal<py::object>(value);
    const std::int64_t result = owned ? PyLong_AsLongLong(value) : -1;
    if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
    return result;
  }
  std::int64_t version(py::handle tensor) const { return number(PyObject_GetAttr(tensor.ptr(), version_.ptr())); }
  std::int64_t address(py::handle tensor) const {
    return number(PyObject_CallMethodNoArgs(tensor.ptr(), data_ptr_.ptr()));
  }
  void add_lines(std::uintptr_t begin, std::uintptr_t bytes) {
    for (std::uintptr_t at = 0; at < bytes; at += kLine) lines_.push_back(begin + at);
  }

  py::str version_{"_version"}, data_ptr_{"data_ptr"};
  std::vector<Place> places_;
  std::vector<std::pair<py::dict, Py_ssize_t>> sized_;
  std::vector<Held> tensors_;
  std::vector<std::uintptr_t> lines_;
};

}  // namespace
}  // namespace effnet_kernels

PYBIND11_MODULE(_watch, m) {
  m.doc() = "Whether dictionaries and tensors are still as they were.";
  py::class_<effnet_kernels::Watch>(m, "Watch")
      .def(py::init<const py::list&, const py::list&, const py::list&>(), py::arg("places"), py::arg("sized"),
           py::arg("tensors"))
      .def("unchanged", &effnet_kernels::Watch::unchanged);
}
