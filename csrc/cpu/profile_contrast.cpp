// Some rows at a time: their products pair by pair, then the losses and the pairs' weights in the gradient with a row a
// lane, then the gradients.
#include "ops/profile_contrast.h"

#include <utility>

#include "common/workspace.h"
#include "cpu/score_tile.h"
#include "cpu/softplus.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int64_t kRows = 32;  // rows a block: whole vectors of every level
static_assert(kRows % kLanes == 0);
constexpr int64_t kBlocks = 8;  // blocks a task

// A worker's memory. Entry (i, j) of `pairs`, i < j, serves both (i, j) and (j, i).
struct Scratch {
  float* rows;      // [K][D] one row's profiles, where they are not float32
  float* pairs;     // [K][K][kRows] scores, then their gradients
  float* inv_norm;  // [K][kRows], 1 where not normalised
  float* top;       // [K][kRows] the largest score with another
  float* slope;     // [K][kRows] d loss / d lse, over the sum of e^(score - top): an lse would round at its size
  float* along;     // [K][kRows] <gradient of the unit row, unit row>
  float* weights;   // [K] of one row
  const float** profiles;  // [K] of one row

  float* pair(int64_t num, int64_t i, int64_t j) const { return pairs + (i < j ? i * num + j : j * num + i) * kRows; }
};

PRF_INLINE void load_profiles(const ProfileContrastArgs& a, int64_t row, const Scratch& s) {
  for (int64_t k = 0; k < a.profiles.count; ++k)
    s.profiles[k] = row_as_float(a.profiles[k], row, s.rows + k * a.profiles.first.cols);
}

PRF_INLINE void score(const ProfileContrastArgs& a, int64_t row0, int64_t rows, const Scratch& s) {
  const int64_t K = a.profiles.count, D = a.profiles.first.cols;
  for (int64_t r = 0; r < rows; ++r) {
    load_profiles(a, row0 + r, s);
    for (int64_t i = 0; i < K; ++i) s.inv_norm[i * kRows + r] = a.normalize ? inverse_norm(s.profiles[i], D) : 1.f;
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = i + 1; j < K; ++j)
        s.pair(K, i, j)[r] =
            dot(s.profiles[i], s.profiles[j], D) * s.inv_norm[i * kRows + r] * s.inv_norm[j * kRows + r] * a.scale;
  }
}

// e^x for x <= 0.
PRF_INLINE Vec exp_below(Vec x) { return exp2_bounded_above(x * kLog2e); }

// The losses of the kLanes rows at `r`; leaves top and slope. Lanes that stand for no row take what is there.
PRF_INLINE Vec losses(const ProfileContrastArgs& a, int64_t r, const Scratch& s) {
  const int64_t K = a.profiles.count;
  Vec loss{};
  for (int64_t i = 0; i < K; ++i) {
    Vec top = splat(-3.4e38f), sum{};
    for (int64_t j = 0; j < K; ++j)
      if (j != i) top = max(top, load(s.pair(K, i, j) + r));
    for (int64_t j = 0; j < K; ++j)
      if (j != i) sum += exp_below(load(s.pair(K, i, j) + r) - top);
    const Softplus term = softplus(top + (sum == sum ? log(sum) : sum) + a.shift);
    loss += term.value;
    store(s.top + i * kRows + r, top);
    store(s.slope + i * kRows + r, term.sigmoid / sum);
  }
  return loss;
}

// Turns the scores of the kLanes rows at `r` into their gradients, where `factor` is dL/d loss.
PRF_INLINE void weigh(const ProfileContrastArgs& a, int64_t r, Vec factor, const Scratch& s) {
  const int64_t K = a.profiles.count;
  for (int64_t i = 0; i < K; ++i) store(s.along + i * kRows + r, Vec{});
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = i + 1; j < K; ++j) {
      const int64_t at_i = i * kRows + r, at_j = j * kRows + r;
      float* pair = s.pair(K, i, j) + r;
      const Vec x = load(pair);
      const Vec grad = factor * (load(s.slope + at_i) * exp_below(x - load(s.top + at_i)) +
                                 load(s.slope + at_j) * exp_below(x - load(s.top + at_j)));
      store(pair, grad);
      store(s.along + at_i, load(s.along + at_i) + grad * x);
      store(s.along + at_j, load(s.along + at_j) + grad * x);
    }
}

// The gradients of one row's profiles, each a weighted sum of them all.
PRF_INLINE void gradients(const ProfileContrastArgs& a, int64_t row, int64_t r, const Scratch& s) {
  const int64_t K = a.profiles.count, B = a.profiles.first.rows, D = a.profiles.first.cols;
  load_profiles(a, row, s);
  for (int64_t i = 0; i < K; ++i) {
    const float inv_norm = s.inv_norm[i * kRows + r];
    for (int64_t j = 0; j < K; ++j)
      s.weights[j] = i == j ? 0.f : s.pair(K, i, j)[r] * a.scale * s.inv_norm[j * kRows + r] * inv_norm;
    // A row shorter than kMinNorm was divided by a constant.
    if (a.normalize && inv_norm < 1 / kMinNorm) s.weights[i] = -s.along[i * kRows + r] * inv_norm * inv_norm;
    float* grad = a.grad_profiles + (i * B + row) * D;
    int64_t c = 0;
    for (; c + kLanes <= D; c += kLanes) {
      Vec sum{};
      for (int64_t j = 0; j < K; ++j) sum += s.weights[j] * load(s.profiles[j] + c);
      store(grad + c, sum);
    }
    for (; c < D; ++c) {
      float sum = 0;
      for (int64_t j = 0; j < K; ++j) sum += s.weights[j] * s.profiles[j][c];
      grad[c] = sum;
    }
  }
}

}  // namespace

void profile_contrast(const ProfileContrastArgs& a) {
  using W = Workspace;
  const int64_t K = a.profiles.count, D = a.profiles.first.cols, blocks = (a.batch + kRows - 1) / kRows;
  if (K == 1) {  // a sum over nothing
    std::memset(a.loss, 0, sizeof(float) * a.batch);
    if (a.grad_rows) std::memset(a.grad_profiles, 0, sizeof(float) * a.batch * D);
    return;
  }
  const int threads = threads_for(a.batch * K * K * D, a.threads);
  const int64_t per_row = K * kRows, size = K * D + K * per_row + 4 * per_row + K;
  W workspace(W::bytes_for<float>(threads * size) + W::bytes_for<const float*>(threads * K));
  float* memory = workspace.take<float>(threads * size);
  const float** pointers = workspace.take<const float*>(threads * K);

  parallel_for((blocks + kBlocks - 1) / kBlocks, threads, [&](int64_t task, int slot) {
    float* next = memory + slot * size;
    const auto take = [&](int64_t n) { return std::exchange(next, next + n); };
    const Scratch s{take(K * D),   take(K * per_row), take(per_row), take(per_row),
                    take(per_row), take(per_row),     take(K),       pointers + slot * K};
    for (int64_t block = task * kBlocks; block < blocks && block < (task + 1) * kBlocks; ++block) {
      const int64_t row0 = block * kRows, rows = a.batch - row0 < kRows ? a.batch - row0 : kRows;
      score(a, row0, rows, s);
      float loss[kRows], factor[kRows] = {};
      for (int64_t r = 0; r < kRows; r += kLanes) store(loss + r, losses(a, r, s));
      std::memcpy(a.loss + row0, loss, sizeof(float) * rows);
      if (!a.grad_rows) continue;
      std::memcpy(factor, a.grad_rows + row0, sizeof(float) * rows);
      for (int64_t r = 0; r < kRows; r += kLanes) weigh(a, r, load(factor + r), s);
      for (int64_t r = 0; r < rows; ++r) gradients(a, row0 + r, r, s);
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
