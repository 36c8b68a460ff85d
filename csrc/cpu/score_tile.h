// Score tiles: packed operands and the one register tile that all tiled kernels share.
//   panels  [num_panels][D][64]: 64 columns side by side, what a row block is multiplied with
//   rows    [padded rows][Dp]:   Dp = D rounded up to whole vectors, zero padded
#pragma once
#include <cmath>

#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {

constexpr int kPanel = 64;
constexpr int kTileRows = kLanes == 16 ? 8 : 4;  // 8 x 2 accumulators hide the latency of two FMA pipes
constexpr int kTileVecs = 2;
constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;
constexpr float kMinNorm = 1e-12f;  // as torch.nn.functional.normalize

PRF_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
PRF_INLINE int64_t num_panels(int64_t cols) { return (cols + kPanel - 1) / kPanel; }

// acc[r][v] += sum_k a[r * a_row + k * a_k] * b[k * b_k + v * kLanes]
template <int kRows, int kVecs>
PRF_INLINE void multiply_add(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k, int64_t depth,
                             Vec (&acc)[kRows][kVecs]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec column[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) column[v] = load(b + k * b_k + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec x = splat(a[r * a_row + k * a_k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] += x * column[v];
    }
  }
}

template <int kVecs>
PRF_INLINE void add_product_strip(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                                  int64_t depth, float* c, int64_t c_row, int64_t rows) {
  for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
    Vec acc[kTileRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = load(c + (r0 + r) * c_row + v * kLanes);
    multiply_add(a + r0 * a_row, a_row, a_k, b, b_k, depth, acc);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) store(c + (r0 + r) * c_row + v * kLanes, acc[r][v]);
  }
}

// c[rows][cols] += a . b, rows a multiple of kTileRows and cols of kLanes; a(r, k) = a[r * a_row + k * a_k].
PRF_INLINE void add_product(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k, int64_t depth,
                            float* c, int64_t c_row, int64_t rows, int64_t cols) {
  int64_t j = 0;
  for (; j + kTileVecs * kLanes <= cols; j += kTileVecs * kLanes)
    add_product_strip<kTileVecs>(a, a_row, a_k, b + j, b_k, depth, c + j, c_row, rows);
  if (j < cols) add_product_strip<1>(a, a_row, a_k, b + j, b_k, depth, c + j, c_row, rows);
}

// scores[rows][64] = <x_r, panel column> + init[r], rows a multiple of kTileRows; x is [rows][x_row]. The constant is
// added last: a sum that starts at a large one rounds at its size.
PRF_INLINE void score_panel(const float* x, int64_t x_row, const float* panel, int64_t depth, const float* init,
                            float* scores, int64_t rows) {
  for (int64_t r0 = 0; r0 < rows; r0 += kTileRows)
    for (int j = 0; j < kPanel; j += kTileVecs * kLanes) {
      Vec acc[kTileRows][kTileVecs];
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kTileVecs; ++v) acc[r][v] = Vec{};
      multiply_add(x + r0 * x_row, x_row, 1, panel + j, kPanel, depth, acc);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kTileVecs; ++v) store(scores + (r0 + r) * kPanel + j + v * kLanes, acc[r][v] + init[r0 + r]);
    }
}

PRF_INLINE float inverse_norm(const float* row, int64_t depth) {
  const float norm = std::sqrt(dot(row, row, depth));
  return 1.f / (norm < kMinNorm ? kMinNorm : norm);  // a NaN stays
}

// Rows index[0..count) of `view` (all in order when null), times `factor`, and over their norms when `inv_norm`
// ([count], filled here) is not null. out: [padded][padded_depth], the rows from `count` on zero.
inline void pack_rows(const MatrixView& view, const int64_t* index, int64_t count, int64_t padded,
                      int64_t padded_depth, float factor, float* inv_norm, float* out, int threads) {
  constexpr int64_t kRows = 64;
  const int64_t depth = view.cols;
  parallel_for(num_panels(padded), threads_for(padded * depth, threads), [&](int64_t task, int) {
    for (int64_t b = task * kRows; b < padded && b < (task + 1) * kRows; ++b) {
      float* to = out + b * padded_depth;
      for (int64_t k = 0; k < padded_depth; ++k) to[k] = 0;
      if (b >= count) continue;
      const float* row = row_as_float(view, index ? index[b] : b, to);
      float by = factor;
      if (inv_norm) by *= inv_norm[b] = inverse_norm(row, depth);
      for (int64_t k = 0; k < depth; ++k) to[k] = row[k] * by;
    }
  });
}

// The same rows as panels (factor 1), columns from `count` on zero; `rows` ([num_panels * 64][padded_depth]) is the
// row-major copy that gradients need, or null.
inline void pack_panels(const MatrixView& view, const int64_t* index, int64_t count, int64_t padded_depth,
                        bool normalize, float* inv_norm, float* panels, float* rows, float* scratch, int threads) {
  const int64_t depth = view.cols;
  parallel_for(num_panels(count), threads_for(count * depth, threads), [&](int64_t p, int slot) {
    float* panel = panels + p * depth * kPanel;
    for (int j = 0; j < kPanel; ++j) {
      const int64_t b = p * kPanel + j;
      float* to = rows ? rows + b * padded_depth : scratch + slot * padded_depth;
      for (int64_t k = 0; k < padded_depth; ++k) to[k] = 0;
      if (b < count) {
        const float* row = row_as_float(view, index ? index[b] : b, to);
        const float by = normalize ? inverse_norm(row, depth) : 1.f;
        if (inv_norm) inv_norm[b] = by;
        for (int64_t k = 0; k < depth; ++k) to[k] = row[k] * by;
      }
      for (int64_t k = 0; k < depth; ++k) panel[k * kPanel + j] = to[k];
    }
  });
}

// The gradient of a row from the gradient `grad` of its unit row: (grad - unit <unit, grad>) / norm, times
// grad_factor; `unit` holds the unit row times `factor`. A row shorter than kMinNorm was divided by a constant. Without a
// norm: grad. Added to `out` or (kAdd false) stored there, where `out` may be `grad`.
template <bool kAdd>
PRF_INLINE void unnormalize(const float* unit, float factor, const float* inv_norm, const float* grad,
                            float grad_factor, int64_t depth, float* out) {
  float along = 0, by = grad_factor;
  if (inv_norm) {
    by *= *inv_norm;
    if (*inv_norm < 1 / kMinNorm) along = dot(unit, grad, depth) / (factor * factor);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const float g = by * (grad[k] - along * unit[k]);
    out[k] = kAdd ? out[k] + g : g;
  }
}

}  // namespace PRF_ISA
}  // namespace prorec
