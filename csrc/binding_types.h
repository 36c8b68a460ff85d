// How Python's addresses and sizes become views. Only the two bindings files include it.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/views.h"
#include "ops/environment_bpr.h"

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

// (matrix of the first table..., tables, their stride), as prorec_fast._native.tables makes it.
inline TablesView tables(const py::tuple& t) {
  return {matrix(t), t[5].cast<int64_t>(), t[6].cast<int64_t>()};
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

// (matrix, matrix of the first profile table, elements between profile tables)
inline ProfiledTables profiled_tables(const py::tuple& t) {
  return {matrix(t[0].cast<py::tuple>()), matrix(t[1].cast<py::tuple>()), t[2].cast<int64_t>()};
}

// What both passes of environment_bpr take: (user, item, (users, positives, negatives), batch, (weights, E, K),
// alignment, variance weight, unbiased, (total, losses, variance), sigmoid).
inline EnvironmentBprArgs environment_bpr_args(const py::tuple& t, int threads) {
  const auto at = [](const py::handle& tuple, int n) { return tuple.cast<py::tuple>()[n].cast<int64_t>(); };
  const py::tuple index = t[2], weights = t[4], results = t[8];
  return {profiled_tables(t[0]), profiled_tables(t[1]),
          pointer<const int64_t>(at(index, 0)), pointer<const int64_t>(at(index, 1)),
          pointer<const int64_t>(at(index, 2)), t[3].cast<int64_t>(), pointer<const float>(at(weights, 0)),
          static_cast<int>(at(weights, 1)), static_cast<int>(at(weights, 2)),
          pointer<const float>(t[5].cast<Address>()), t[6].cast<double>(), t[7].cast<bool>(),
          pointer<float>(at(results, 0)), pointer<float>(at(results, 1)), pointer<float>(at(results, 2)),
          pointer<float>(t[9].cast<Address>()), threads};
}

}  // namespace prorec
