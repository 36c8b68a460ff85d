// Plain views of memory that somebody else owns. No torch header: Python passes addresses and sizes.
#pragma once
#include <cstdint>
#include <cstring>

namespace prorec {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1 };

// Row-major with unit column stride; rows are `stride` elements apart.
struct MatrixView {
  void* data;
  int64_t rows, cols, stride;
  DType dtype;
};

// CSR rows; `values` is null for an unweighted matrix.
struct CsrView {
  const int64_t* indptr;    // [rows + 1]
  const int32_t* indices;   // [nnz], ascending within a row
  const float* values;      // [nnz] or null
  int64_t rows, cols;
};

}  // namespace prorec
