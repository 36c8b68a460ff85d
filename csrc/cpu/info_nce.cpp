#include "ops/info_nce.h"

#include <type_traits>

#include "cpu/softmax_sweep.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int kVecs = kPanel / kLanes;

// kBounded: the tile holds m_j 2^(s' - bound). Otherwise it keeps the scores, and the exponentials are taken again once
// the row's maximum and sum are known. Scores are in base 2: s' = s log2(e).
template <bool kBounded>
struct NceSweep {
  static constexpr bool kTransforms = false;
  const InfoNceArgs& a;
  const Sweep& s;
  float bound;
  const float* init;          // [padded_rows] -bound
  const float* factors;       // [panels * 64] column multiplicities, 0 where there is no column
  float *coef, *max, *log2_sum;  // [padded_rows] sum over the row's pairs of dL/dlse; the row's normaliser
  float* pair_coef;           // [B] dL/dlse of each pair
  const float* inv_norm;      // [R] or null
  RunningSum* parts;          // [chunks][block]

  PRF_INLINE_MEMBER int64_t pair_begin(int64_t r) const { return a.pair_indptr ? a.pair_indptr[r] : r; }
  PRF_INLINE_MEMBER int64_t pair_col(int64_t b) const { return a.pair_cols ? a.pair_cols[b] : b; }

  PRF_INLINE_MEMBER void score(int64_t row0, int64_t chunk) {
    RunningSum* out = parts + chunk * s.block;
    for (int64_t r = 0; r < s.block; ++r) out[r] = RunningSum{};
    Vec sums[kMaxBlock] = {};
    for (int64_t p = s.chunk_begin(chunk); p < s.chunk_begin(chunk + 1); ++p) {
      float* tile = s.tile_at(s.tile, p);
      const float* factor = factors + p * kPanel;
      score_panel(s.x + row0 * s.padded_depth, s.padded_depth, s.y_panels + p * s.depth * kPanel, s.depth,
                  init + row0, tile, s.block);
      if (!kBounded) {
        const ColumnMask mask(p, s.cols);
        if (mask.partial) fill_absent(mask, tile, s.block);
        for (int64_t r = 0; r < s.block; ++r) out[r].add(tile + r * kPanel, factor);
        continue;
      }
      for (int64_t r = 0; r < s.block; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          float* at = tile + r * kPanel + v * kLanes;
          const Vec e = exp2(load(at)) * load(factor + v * kLanes);
          sums[r] += e;
          store(at, e);
        }
    }
    if (kBounded)
      for (int64_t r = 0; r < s.block; ++r) out[r] = RunningSum{0, reduce_add(sums[r])};
  }

  PRF_INLINE_MEMBER void finish_scores(int64_t row0) {
    for (int64_t row = row0; row < row0 + s.block; ++row) {
      coef[row] = 0;
      if (row >= s.rows) {
        max[row] = log2_sum[row] = 0;
        continue;
      }
      RunningSum total = parts[row - row0];
      for (int64_t c = 1; c < s.chunks; ++c) total.add(parts[c * s.block + row - row0]);
      max[row] = total.max;
      log2_sum[row] = std::log2(total.sum);
      const float* x = s.x + row * s.padded_depth;
      for (int64_t b = pair_begin(row); b < pair_begin(row + 1); ++b) {
        const float positive = pair_dot(x, pair_col(b)) - bound;
        const float log2_share = positive - max[row] - log2_sum[row];  // of the positive in the sum
        const float loss = -log2_share * kLn2, share = std::exp2(log2_share);
        a.loss[b] = a.eps > 0 ? -std::log(share + a.eps) : loss;
        if (!s.gradients) continue;
        pair_coef[b] = a.grad_pairs[b] * (a.eps > 0 ? share / (share + a.eps) : 1.f);
        coef[row] += pair_coef[b];
      }
    }
  }

  // <x, column c>, from the panels: the row-major copy exists only with gradients.
  PRF_INLINE_MEMBER float pair_dot(const float* x, int64_t c) const {
    const float* column = s.y_panels + c / kPanel * s.depth * kPanel + c % kPanel;
    float sum = 0;
    for (int64_t k = 0; k < s.depth; ++k) sum += x[k] * column[k * kPanel];
    return sum;
  }

  PRF_INLINE_MEMBER void transform(int64_t, int64_t) {}
  PRF_INLINE_MEMBER void finish_transform(int64_t) {}

  PRF_INLINE_MEMBER void to_gradient(int64_t row0, int64_t panel) {
    float* tile = s.tile_at(s.tile, panel);
    const float* factor = factors + panel * kPanel;
    for (int64_t r = 0; r < s.block; ++r) {
      const float top = max[row0 + r], log_sum = log2_sum[row0 + r], by = coef[row0 + r];
      const float scale = by * std::exp2(-log_sum);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        float* at = tile + r * kPanel + v * kLanes;
        if (kBounded)
          store(at, load(at) * scale);
        else
          store(at, exp2_bounded_above(load(at) - top - log_sum) * load(factor + v * kLanes) * by);
      }
    }
  }

  PRF_INLINE_MEMBER void finish_gradient(int64_t row0) {
    for (int64_t row = row0; row < row0 + s.block && row < s.rows; ++row) {
      const float* x = s.x + row * s.padded_depth;
      float* grad_x = s.grad_x + (row - row0) * s.padded_depth;
      for (int64_t b = pair_begin(row); b < pair_begin(row + 1); ++b) {
        const int64_t offset = pair_col(b) * s.padded_depth;
        for (int64_t k = 0; k < s.padded_depth; ++k) {
          grad_x[k] -= pair_coef[b] * s.y_rows[offset + k];
          s.grad_y[offset + k] -= pair_coef[b] * x[k];
        }
      }
      unnormalize<true>(x, a.scale * kLog2e, inv_norm ? inv_norm + row : nullptr, grad_x, a.scale, s.depth,
                        a.grad_anchor + (a.rows ? a.rows[row] : row) * s.depth);
    }
  }
};

}  // namespace

void info_nce(const InfoNceArgs& a) {
  if (a.num_rows == 0 || a.num_cols == 0) return;
  const bool gradients = a.grad_anchor != nullptr;
  const bool is_bounded = bounded(a.scale, a.normalize);
  Sweep s = plan_sweep(a.num_rows, a.num_cols, a.anchor.cols, 1, gradients, a.threads);
  const int64_t padded_cols = s.panels * kPanel;
  const int64_t pairs = a.pair_indptr ? a.pair_indptr[a.num_rows] : a.num_rows;

  using W = Workspace;
  Workspace workspace(sweep_bytes(s, 1, true) + 5 * W::bytes_for<float>(s.padded_rows) +
                      2 * W::bytes_for<float>(padded_cols) + W::bytes_for<float>(pairs) +
                      W::bytes_for<RunningSum>(s.chunks * s.block) +
                      W::bytes_for<float>(s.threads * s.padded_depth));
  take_sweep(s, workspace, 1, nullptr);
  const auto per_row = [&] { return workspace.take<float>(s.padded_rows); };
  float *init = per_row(), *coef = per_row(), *max = per_row(), *log2_sum = per_row(), *inv_norm = per_row();
  float* factors = workspace.take<float>(padded_cols);
  float* col_inv_norm = workspace.take<float>(padded_cols);
  float* pair_coef = workspace.take<float>(pairs);
  RunningSum* parts = workspace.take<RunningSum>(s.chunks * s.block);
  float* scratch = workspace.take<float>(s.threads * s.padded_depth);

  pack_rows(a.anchor, a.rows, s.rows, s.padded_rows, s.padded_depth, a.scale * kLog2e,
            a.normalize ? inv_norm : nullptr, s.x, s.threads);
  pack_panels(a.positive, a.cols, s.cols, s.padded_depth, a.normalize, col_inv_norm, s.y_panels,
              gradients ? s.y_rows : nullptr, scratch, s.threads);
  const float bound = is_bounded ? a.scale * kLog2e : 0.f;
  for (int64_t b = 0; b < s.padded_rows; ++b) init[b] = -bound;
  for (int64_t j = 0; j < padded_cols; ++j) factors[j] = j >= s.cols ? 0.f : a.col_count ? a.col_count[j] : 1.f;

  const auto run = [&](auto is_bounded_constant) {
    NceSweep<decltype(is_bounded_constant)::value> op{
        a, s, bound, init, factors, coef, max, log2_sum, pair_coef, a.normalize ? inv_norm : nullptr, parts};
    run_sweep(s, op);
  };
  if (is_bounded)
    run(std::true_type{});
  else
    run(std::false_type{});
  if (!gradients) return;
  // With `cols`, grad_positive is the table's gradient, cleared by the caller; without, its rows are all stored here.
  finish_columns(s, a.normalize ? col_inv_norm : nullptr, a.cols, a.grad_positive);
}

}  // namespace PRF_ISA
}  // namespace prorec
