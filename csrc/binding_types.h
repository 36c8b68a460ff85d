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

// What both passes of environment_bpr take: (user, user profiles), (item, item profiles), (users, positives,
// negatives), batch, (weights, E, K), alignment, variance weight, unbiased, (total, losses, variance), sigmoid.
inline EnvironmentBprArgs environment_bpr_args(const py::tuple& t, int threads) {
  const auto side = [](const py::tuple& s) {
    return ProfiledTables{matrix(s[0].cast<py::tuple>()), tables(s[1].cast<py::tuple>())};
  };
  const auto at = [](const py::tuple& tuple, int n) { return tuple[n].cast<Address>(); };
  const py::tuple index = t[2], weights = t[4], results = t[8];
  return {side(t[0]), side(t[1]),
          pointer<const int64_t>(at(index, 0)), pointer<const int64_t>(at(index, 1)),
          pointer<const int64_t>(at(index, 2)), t[3].cast<int64_t>(), pointer<const float>(at(weights, 0)),
          weights[1].cast<int>(), weights[2].cast<int>(), pointer<const float>(at(t, 5)), t[6].cast<double>(),
          t[7].cast<bool>(), pointer<float>(at(results, 0)), pointer<float>(at(results, 1)),
          pointer<float>(at(results, 2)), pointer<float>(at(t, 9)), threads};
}

// (total, losses, variance), alignment; (user, item, user profiles, item profiles)
inline EnvironmentBprBwdArgs environment_bpr_bwd_args(const EnvironmentBprArgs& op, const py::tuple& grads,
                                                      Address grad_alignment, const py::tuple& tables) {
  const auto at = [](const py::tuple& tuple, int n) { return tuple[n].cast<Address>(); };
  return {op, pointer<const float>(at(grads, 0)), pointer<const float>(at(grads, 1)),
          pointer<const float>(at(grads, 2)), pointer<float>(grad_alignment), pointer<void>(at(tables, 0)),
          pointer<void>(at(tables, 1)), pointer<void>(at(tables, 2)), pointer<void>(at(tables, 3))};
}

}  // namespace prorec
