// How Python's addresses and sizes become views. Only the two bindings files include it.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/views.h"

namespace prorec {

namespace py = pybind11;

using Address = uintptr_t;  // 0 stands for null

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, rows, cols, row stride, dtype), as prorec_fast._native.matrix makes it.
inline MatrixView matrix(const py::tuple& t) {
  return {pointer<void>(t[0].cast<Address>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int64_t>(),
          static_cast<DType>(t[4].cast<int>())};
}

// None stands for no matrix.
inline MatrixView optional_matrix(const py::object& t) {
  return t.is_none() ? MatrixView{nullptr, 0, 0, 0, DType::kFloat32} : matrix(t.cast<py::tuple>());
}

// (indptr, indices, values or 0, rows, cols), as prorec_fast._native.csr makes it.
inline CsrView csr(const py::tuple& t) {
  return {pointer<const int64_t>(t[0].cast<Address>()), pointer<const int32_t>(t[1].cast<Address>()),
          pointer<const float>(t[2].cast<Address>()), t[3].cast<int64_t>(), t[4].cast<int64_t>()};
}

}  // namespace prorec
