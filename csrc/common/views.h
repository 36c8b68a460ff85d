// Plain views of memory that somebody else owns. No torch header: Python passes addresses and sizes.
#pragma once
#include <cstdint>
#include <cstring>

namespace prorec {

// The CPU kernels read float32 and bfloat16 (float16 reaches them as a float32 copy), the CUDA kernels all three.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Row-major with unit column stride; rows are `stride` elements apart.
struct MatrixView {
  void* data;
  int64_t rows, cols, stride;
  DType dtype;
};

// Tables of one shape; each starts `apart` elements after the one before.
struct TablesView {
  MatrixView first;
  int64_t count, apart;

  MatrixView operator[](int64_t k) const {
    MatrixView table = first;
    table.data = static_cast<char*>(first.data) + k * apart * (first.dtype == DType::kFloat32 ? 4 : 2);
    return table;
  }
};

// CSR rows; `values` is null for an unweighted matrix.
struct CsrView {
  const int64_t* indptr;    // [rows + 1]
  const int32_t* indices;   // [nnz], ascending within a row
  const float* values;      // [nnz] or null
  int64_t rows, cols;
};

}  // namespace prorec
