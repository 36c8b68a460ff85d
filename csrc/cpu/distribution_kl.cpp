#include "ops/distribution_kl.h"

#include <type_traits>

#include "cpu/softmax_sweep.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int kVecs = kPanel / kLanes;

struct Parts {  // one chunk's share of a row's sums
  RunningSum student, teacher;
  float cross, loss, alpha;
};

// Scores are kept in base 2: s' = s log2(e). The gradient of a row is
//   dL/ds_j = coef (alpha tile_j - beta slot_j)
enum class Mode {
  kDirect,  // cross entropy of bounded scores: tile = 2^(s' - bound), slot = p, alpha and beta one over their sums
  kEps,     // the same with eps: a second pass over the tiles, once q is known, finds slot and alpha
  kRaw,     // any divergence, any scores: the tiles keep scores until the second pass
};

template <Mode kMode>
struct KlSweep {
  static constexpr bool kTransforms = kMode != Mode::kDirect;
  const DistributionKlArgs& a;
  const Sweep& s;
  const float *teacher_x, *teacher_panels;  // [padded_rows][Tp], [panels][T][64]
  int64_t teacher_depth, teacher_padded;
  const float *init, *teacher_init;  // [padded_rows] what is added to every score
  float *coef, *alpha, *beta;        // [padded_rows]
  float* offsets;                    // [padded_rows][4] kRaw: maximum and log2 of the sum, student then teacher
  const float* inv_norm;             // [B] or null
  Parts* parts;                      // [chunks][block]

  PRF_INLINE_MEMBER int64_t student_row(int64_t b) const { return a.users ? a.users[b] : b; }
  PRF_INLINE_MEMBER int64_t teacher_row(int64_t b) const { return a.teacher_users ? a.teacher_users[b] : b; }

  PRF_INLINE_MEMBER void score(int64_t row0, int64_t chunk) {
    Parts* out = parts + chunk * s.block;
    for (int64_t r = 0; r < s.block; ++r) out[r] = Parts{};
    Vec sums[kMaxBlock] = {}, teacher_sums[kMaxBlock] = {}, crosses[kMaxBlock] = {};
    for (int64_t p = s.chunk_begin(chunk); p < s.chunk_begin(chunk + 1); ++p) {
      float *student = s.tile_at(s.tile, p), *teacher = s.tile_at(s.slot, p);
      score_panel(s.x + row0 * s.padded_depth, s.padded_depth, s.y_panels + p * s.depth * kPanel, s.depth,
                  init + row0, student, s.block);
      score_panel(teacher_x + row0 * teacher_padded, teacher_padded, teacher_panels + p * teacher_depth * kPanel,
                  teacher_depth, teacher_init + row0, teacher, s.block);
      const ColumnMask mask(p, s.cols);
      if (mask.partial) {
        fill_absent(mask, student, s.block);
        fill_absent(mask, teacher, s.block);
      }
      for (int64_t r = 0; r < s.block; ++r) {
        float *sr = student + r * kPanel, *tr = teacher + r * kPanel;
        if (kMode == Mode::kRaw) {
          out[r].student.add(sr, mask.partial ? mask.lanes : nullptr);
          out[r].teacher.add(tr, mask.partial ? mask.lanes : nullptr);
          continue;
        }
        Vec sum = sums[r], teacher_sum = teacher_sums[r], cross = crosses[r];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          const Vec score = load(sr + v * kLanes);
          Vec e = exp2(score), prob = exp2_bounded_above(load(tr + v * kLanes));
          if (mask.partial) {
            e *= load(mask.lanes + v * kLanes);
            prob *= load(mask.lanes + v * kLanes);
          }
          sum += e;
          teacher_sum += prob;
          cross += prob * score;
          store(sr + v * kLanes, e);
          store(tr + v * kLanes, prob);
        }
        sums[r] = sum;
        teacher_sums[r] = teacher_sum;
        crosses[r] = cross;
      }
    }
    if (kMode == Mode::kRaw) return;
    for (int64_t r = 0; r < s.block; ++r) {
      out[r].student.sum = reduce_add(sums[r]);
      out[r].teacher.sum = reduce_add(teacher_sums[r]);
      out[r].cross = reduce_add(crosses[r]);
    }
  }

  PRF_INLINE_MEMBER void finish_scores(int64_t row0) {
    for (int64_t r = 0; r < s.block; ++r) {
      const int64_t b = row0 + r;
      if (kMode == Mode::kRaw) {
        RunningSum student, teacher;
        for (int64_t c = 0; c < s.chunks; ++c) {
          student.add(parts[c * s.block + r].student);
          teacher.add(parts[c * s.block + r].teacher);
        }
        float* to = offsets + 4 * b;
        to[0] = student.max;
        to[1] = std::log2(student.sum);
        to[2] = teacher.max;
        to[3] = std::log2(teacher.sum);
        continue;
      }
      double sum = 0, teacher_sum = 0, cross = 0;
      for (int64_t c = 0; c < s.chunks; ++c) {
        sum += parts[c * s.block + r].student.sum;
        teacher_sum += parts[c * s.block + r].teacher.sum;
        cross += parts[c * s.block + r].cross;
      }
      // The teacher's sum is 1 but for the rounding of its lse, which would be a common error of the whole row.
      alpha[b] = static_cast<float>(1 / sum);
      beta[b] = static_cast<float>(1 / teacher_sum);
      if (b < s.rows)  // the bound cancels: lse(s) - sum p s = log sum - sum p (s - bound)
        a.loss[b] = static_cast<float>(std::log(sum) - cross / teacher_sum * static_cast<double>(kLn2) - entropy(b));
    }
  }

  PRF_INLINE_MEMBER float entropy(int64_t b) const {
    return a.divergence == Divergence::kKl ? a.teacher_entropy[teacher_row(b)] : 0.f;
  }

  PRF_INLINE_MEMBER void transform(int64_t row0, int64_t chunk) {
    if (kMode == Mode::kEps) return transform_as<Divergence::kCrossEntropy, true>(row0, chunk);
    switch (a.divergence) {
      case Divergence::kReverseKl:
        return a.eps > 0 ? transform_as<Divergence::kReverseKl, true>(row0, chunk)
                         : transform_as<Divergence::kReverseKl, false>(row0, chunk);
      case Divergence::kJs:
        return a.eps > 0 ? transform_as<Divergence::kJs, true>(row0, chunk)
                         : transform_as<Divergence::kJs, false>(row0, chunk);
      default:
        return a.eps > 0 ? transform_as<Divergence::kCrossEntropy, true>(row0, chunk)
                         : transform_as<Divergence::kCrossEntropy, false>(row0, chunk);
    }
  }

  // One vector of a row: from q and p (and their logarithms, kRaw only) to its slot, and what it adds to the loss and
  // to alpha. With f(q, p) the divergence's summand and h = q df/dq: dL/ds = h - q sum(h), so slot = -h and
  // alpha = -sum(h).
  template <Divergence kDivergence, bool kEps>
  PRF_INLINE_MEMBER void point(Vec q, Vec p, Vec log2_q, Vec log2_p, Vec& slot, Vec& loss, Vec& alpha_term) const {
    const Vec eps = splat(a.eps);
    if (kDivergence == Divergence::kCrossEntropy) {  // f = -p log(q + eps)
      if (kEps) {
        loss = -p * log(q + eps);
        slot = p * (q / (q + eps));
      } else {
        loss = -p * log2_q * kLn2;
        slot = p;
      }
      alpha_term = slot;
      return;
    }
    if (kDivergence == Divergence::kReverseKl) {  // f = q log((q + eps) / (p + eps))
      const Vec ratio = kEps ? log(q + eps) - log(p + eps) : (log2_q - log2_p) * kLn2;
      loss = q * ratio;
      slot = -(kEps ? loss + q * (q / (q + eps)) : loss);  // without eps the second term, q, cancels
    } else {  // f = (p log(p/m) + q log(q/m)) / 2, m = (p + q)/2, eps added to each
      Vec log_q_m, log_p_m;  // log(q/m), log(p/m)
      if (kEps) {
        const Vec log_m = log((p + q) * 0.5f + eps);
        log_q_m = log(q + eps) - log_m;
        log_p_m = log(p + eps) - log_m;
      } else {
        const Vec d = (log2_p - log2_q) * kLn2;  // log(q/m) = log 2 - softplus(log p - log q)
        const Vec shared = kLn2 - log(1.f + exp2_bounded_above(min(d, -d) * kLog2e));
        log_q_m = shared - max(d, Vec{});
        log_p_m = shared - max(-d, Vec{});
      }
      loss = 0.5f * (p * log_p_m + q * log_q_m);
      slot = -0.5f * q * log_q_m;
      if (kEps) {
        const Vec m = (p + q) * 0.5f;
        slot -= 0.5f * q * (q / (q + eps) - m / (m + eps));
      }
    }
    alpha_term = slot;
  }

  template <Divergence kDivergence, bool kEps>
  PRF_INLINE_MEMBER void transform_as(int64_t row0, int64_t chunk) {
    Vec losses[kMaxBlock] = {}, alphas[kMaxBlock] = {};
    for (int64_t p = s.chunk_begin(chunk); p < s.chunk_begin(chunk + 1); ++p) {
      const ColumnMask mask(p, s.cols);
      for (int64_t r = 0; r < s.block; ++r) {
        float *sr = s.tile_at(s.tile, p) + r * kPanel, *tr = s.tile_at(s.slot, p) + r * kPanel;
        const float* offset = offsets + 4 * (row0 + r);
        const float row_alpha = alpha[row0 + r], row_beta = beta[row0 + r];
        for (int v = 0; v < kVecs; ++v) {
          Vec q = load(sr + v * kLanes), prob = load(tr + v * kLanes), log2_q{}, log2_p{}, slot, loss, alpha_term;
          if (kMode == Mode::kRaw) {
            log2_q = q - offset[0] - offset[1];
            log2_p = prob - offset[2] - offset[3];
            q = exp2_bounded_above(log2_q);
            prob = exp2_bounded_above(log2_p);
          } else {
            q *= row_alpha;
            prob *= row_beta;
          }
          point<kDivergence, kEps>(q, prob, log2_q, log2_p, slot, loss, alpha_term);
          if (mask.partial) {
            const Vec present = load(mask.lanes + v * kLanes);
            q *= present;
            slot *= present;
            loss *= present;
            alpha_term *= present;
          }
          losses[r] += loss;
          alphas[r] += alpha_term;
          store(sr + v * kLanes, q);
          store(tr + v * kLanes, slot);
        }
      }
    }
    for (int64_t r = 0; r < s.block; ++r) {
      parts[chunk * s.block + r].loss = reduce_add(losses[r]);
      parts[chunk * s.block + r].alpha = reduce_add(alphas[r]);
    }
  }

  PRF_INLINE_MEMBER void finish_transform(int64_t row0) {
    for (int64_t r = 0; r < s.block; ++r) {
      const int64_t b = row0 + r;
      double loss = 0, sum = 0;
      for (int64_t c = 0; c < s.chunks; ++c) {
        loss += parts[c * s.block + r].loss;
        sum += parts[c * s.block + r].alpha;
      }
      alpha[b] = static_cast<float>(sum);
      beta[b] = 1;
      if (b < s.rows) a.loss[b] = static_cast<float>(loss - entropy(b));
    }
  }

  PRF_INLINE_MEMBER void to_gradient(int64_t row0, int64_t panel) {
    float* tile = s.tile_at(s.tile, panel);
    const float* slot = s.tile_at(s.slot, panel);
    for (int64_t r = 0; r < s.block; ++r) {
      const float by_slot = coef[row0 + r] * beta[row0 + r], by_tile = coef[row0 + r] * alpha[row0 + r];
#pragma GCC unroll 4
      for (int64_t i = r * kPanel; i < (r + 1) * kPanel; i += kLanes)
        store(tile + i, load(tile + i) * by_tile - load(slot + i) * by_slot);
    }
  }

  PRF_INLINE_MEMBER void finish_gradient(int64_t row0) {
    for (int64_t r = 0; r < s.block && row0 + r < s.rows; ++r) {
      const int64_t b = row0 + r;
      unnormalize<true>(s.x + b * s.padded_depth, a.scale * kLog2e, inv_norm ? inv_norm + b : nullptr,
                        s.grad_x + r * s.padded_depth, a.scale, s.depth, a.grad_user + student_row(b) * s.depth);
    }
  }
};

}  // namespace

void distribution_kl(const DistributionKlArgs& a) {
  if (a.batch == 0 || a.item.rows == 0) return;
  const bool gradients = a.grad_item != nullptr;
  const bool cross_entropy = a.divergence == Divergence::kCrossEntropy || a.divergence == Divergence::kKl;
  const bool raw = !cross_entropy || !bounded(a.scale, a.normalize);
  Sweep s = plan_sweep(a.batch, a.item.rows, a.item.cols, 2, gradients, a.threads);
  const int64_t T = a.teacher_user.cols, Tp = round_up(T, kLanes), padded_cols = s.panels * kPanel;
  const bool own_grad_y = s.depth != s.padded_depth;

  using W = Workspace;
  Workspace workspace(sweep_bytes(s, 2, own_grad_y) + W::bytes_for<float>(s.padded_rows * Tp) +
                      W::bytes_for<float>(padded_cols * T) + 10 * W::bytes_for<float>(s.padded_rows) +
                      W::bytes_for<float>(padded_cols) + W::bytes_for<Parts>(s.chunks * s.block) +
                      W::bytes_for<float>(s.threads * (s.padded_depth > Tp ? s.padded_depth : Tp)));
  take_sweep(s, workspace, 2, own_grad_y ? nullptr : a.grad_item);
  float* teacher_x = workspace.take<float>(s.padded_rows * Tp);
  float* teacher_panels = workspace.take<float>(padded_cols * T);
  const auto per_row = [&] { return workspace.take<float>(s.padded_rows); };
  float *init = per_row(), *teacher_init = per_row(), *coef = per_row();
  float *alpha = per_row(), *beta = per_row(), *inv_norm = per_row();
  float* offsets = workspace.take<float>(4 * s.padded_rows);
  float* item_inv_norm = workspace.take<float>(padded_cols);
  Parts* parts = workspace.take<Parts>(s.chunks * s.block);
  float* scratch = workspace.take<float>(s.threads * (s.padded_depth > Tp ? s.padded_depth : Tp));

  pack_rows(a.user, a.users, s.rows, s.padded_rows, s.padded_depth, a.scale * kLog2e,
            a.normalize ? inv_norm : nullptr, s.x, s.threads);
  pack_panels(a.item, nullptr, s.cols, s.padded_depth, a.normalize, item_inv_norm, s.y_panels,
              gradients ? s.y_rows : nullptr, scratch, s.threads);
  // The teacher's norms are not needed after packing: alpha lends its memory until the sweep fills it.
  pack_rows(a.teacher_user, a.teacher_users, s.rows, s.padded_rows, Tp, a.teacher_scale * kLog2e,
            a.normalize ? alpha : nullptr, teacher_x, s.threads);
  pack_panels(a.teacher_item, nullptr, s.cols, Tp, a.normalize, nullptr, teacher_panels, nullptr, scratch, s.threads);

  for (int64_t b = 0; b < s.padded_rows; ++b) {
    const bool real = b < s.rows;
    init[b] = raw ? 0.f : -a.scale * kLog2e;
    teacher_init[b] = real && !raw ? -a.teacher_lse[a.teacher_users ? a.teacher_users[b] : b] * kLog2e : 0.f;
    coef[b] = real && gradients ? a.grad_rows[b] : 0.f;
  }
  const auto run = [&](auto mode) {
    KlSweep<decltype(mode)::value> op{a,    s,     teacher_x, teacher_panels, T,       Tp, init, teacher_init,
                                      coef, alpha, beta,      offsets,        a.normalize ? inv_norm : nullptr, parts};
    run_sweep(s, op);
  };
  if (raw)
    run(std::integral_constant<Mode, Mode::kRaw>{});
  else if (a.eps > 0)
    run(std::integral_constant<Mode, Mode::kEps>{});
  else
    run(std::integral_constant<Mode, Mode::kDirect>{});
  if (!gradients) return;
  finish_columns(s, a.normalize ? item_inv_norm : nullptr, nullptr, a.grad_item);
}

void distribution_stats(const DistributionStatsArgs& a) {
  constexpr int64_t kBlock = 48;  // rows a task: multiple of every kTileRows
  const int64_t rows = a.user.rows, cols = a.item.rows, T = a.item.cols, Tp = round_up(T, kLanes);
  if (rows == 0 || cols == 0) return;
  const int threads = threads_for(rows * cols * T, a.threads);
  const int64_t padded_rows = round_up(rows, kBlock), panels = num_panels(cols);
  using W = Workspace;
  Workspace workspace(W::bytes_for<float>(padded_rows * Tp) + W::bytes_for<float>(panels * kPanel * T) +
                      W::bytes_for<float>(padded_rows) + W::bytes_for<float>(threads * (kBlock * kPanel + Tp)));
  float* x = workspace.take<float>(padded_rows * Tp);
  float* y = workspace.take<float>(panels * kPanel * T);
  float* inv_norm = workspace.take<float>(padded_rows);
  float* scratch = workspace.take<float>(threads * (kBlock * kPanel + Tp));
  pack_rows(a.user, nullptr, rows, padded_rows, Tp, a.scale * kLog2e, a.normalize ? inv_norm : nullptr, x, threads);
  pack_panels(a.item, nullptr, cols, Tp, a.normalize, nullptr, y, nullptr, scratch, threads);

  parallel_for(padded_rows / kBlock, threads, [&](int64_t task, int slot) {
    const float zero[kBlock] = {};
    RunningSum sums[kBlock];
    double cross[kBlock] = {};  // sum of 2^(s - max) (s - max), with the running maximum
    float* scores = scratch + slot * (kBlock * kPanel + Tp);
    for (int64_t p = 0; p < panels; ++p) {
      score_panel(x + task * kBlock * Tp, Tp, y + p * T * kPanel, T, zero, scores, kBlock);
      const ColumnMask mask(p, cols);
      if (mask.partial) fill_absent(mask, scores, kBlock);
      for (int64_t r = 0; r < kBlock; ++r) {
        const float before = sums[r].max, sum_before = sums[r].sum;
        const float* row = scores + r * kPanel;
        sums[r].add(row, mask.lanes);
        const float max = sums[r].max;
        if (max > before && sum_before > 0)  // sum of e (s - before) in terms of the new maximum
          cross[r] = (cross[r] + sum_before * (double(before) - max)) * std::exp2(before - max);
        Vec total{};
        for (int v = 0; v < kVecs; ++v) {
          const Vec d = load(row + v * kLanes) - max;
          total += exp2_bounded_above(d) * d * load(mask.lanes + v * kLanes);
        }
        cross[r] += reduce_add(total);
      }
    }
    for (int64_t r = 0; r < kBlock && task * kBlock + r < rows; ++r) {
      const double log_sum = std::log(double(sums[r].sum));
      a.lse[task * kBlock + r] = static_cast<float>(double(sums[r].max) * kLn2 + log_sum);
      a.entropy[task * kBlock + r] = static_cast<float>(log_sum - cross[r] / sums[r].sum * kLn2);
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
