#include "ops/multinomial_nll.h"

#include <algorithm>
#include <cmath>

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int64_t kBlock = 1024;       // columns that have a maximum and a sum of their own: 4 KB, read twice from L1
constexpr int64_t kTaskBlocks = 16;    // blocks that make a task
constexpr int64_t kTaskRows = 64;      // rows that make a task, and column sums
constexpr int64_t kExpWork = 16;       // an exponential in multiply-adds

// A row's logits, and what is loaded where it has ended: probability 0.
struct LogitRow {
  float* logits;
  const float* bias;
  int64_t size;

  PRF_INLINE_MEMBER Vec at(int64_t j) const {
    if (j + kLanes <= size) return bias ? load(logits + j) + load(bias + j) : load(logits + j);
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = j + i < size ? one(j + i) : -HUGE_VALF;
    return load(lanes);
  }
  PRF_INLINE_MEMBER float one(int64_t j) const { return bias ? logits[j] + bias[j] : logits[j]; }
};

// e^(x - top), exactly 0 below float32's normal numbers and for x = -inf: a masked item has no share.
PRF_INLINE Vec share(Vec x, float top) {
  const Vec power = (x - top) * kLog2e;
  return power < -126.f ? Vec{} : exp2(power);
}

struct BlockSum {
  float max, sum;  // of e^(logit - max); 0 where all logits are -inf, NaN where one is
};

PRF_INLINE BlockSum sum_block(const LogitRow& row, int64_t begin, int64_t end) {
  Vec top = row.at(begin);
  for (int64_t j = begin + kLanes; j < end; j += kLanes) top = max(top, row.at(j));
  const float m = reduce_max(top), shift = m == -HUGE_VALF ? 0.f : m;
  Vec sum{};
  for (int64_t j = begin; j < end; j += kLanes) sum += share(row.at(j), shift);
  return {m, reduce_add(sum)};
}

struct Softmax {
  float max;
  double sum;
};

PRF_INLINE Softmax combine(const BlockSum* blocks, int64_t count) {
  float max = -HUGE_VALF;
  for (int64_t i = 0; i < count; ++i) max = blocks[i].max > max ? blocks[i].max : max;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += blocks[i].sum * std::exp(static_cast<double>(blocks[i].max - max));
  return {max, sum};
}

}  // namespace

void multinomial_nll(const MultinomialNllArgs& a) {
  const int64_t B = a.logits.rows, N = a.logits.cols, blocks = (N + kBlock - 1) / kBlock;
  const int threads = threads_for(kExpWork * B * N, a.threads);
  Workspace workspace(Workspace::bytes_for<BlockSum>(B * blocks) + 2 * Workspace::bytes_for<float>(B));
  BlockSum* sums = workspace.take<BlockSum>(B * blocks);
  float *row_max = workspace.take<float>(B), *factor = workspace.take<float>(B);
  const auto logit_row = [&](int64_t r) {
    return LogitRow{static_cast<float*>(a.logits.data) + r * a.logits.stride, a.bias, N};
  };
  const auto target_row = [&](int64_t r) { return a.rows ? a.rows[r] : r; };
  const auto target_value = [&](int64_t k) { return a.targets.values ? a.targets.values[k] : 1.f; };

  // A task is several short rows or a part of a long one.
  const int64_t parts = (blocks + kTaskBlocks - 1) / kTaskBlocks;
  const int64_t group = std::max<int64_t>(1, kTaskBlocks * kBlock / std::max<int64_t>(N, 1));
  parallel_for((B + group - 1) / group * parts, threads, [&](int64_t task, int) {
    const int64_t first = task / parts * group, part = task % parts;
    for (int64_t r = first; r < std::min(first + group, B); ++r)
      for (int64_t i = part * kTaskBlocks; i < std::min((part + 1) * kTaskBlocks, blocks); ++i)
        sums[r * blocks + i] = sum_block(logit_row(r), i * kBlock, std::min((i + 1) * kBlock, N));
  });

  parallel_for((B + kTaskRows - 1) / kTaskRows, threads, [&](int64_t task, int) {
    for (int64_t r = task * kTaskRows; r < std::min((task + 1) * kTaskRows, B); ++r) {
      const Softmax softmax = combine(sums + r * blocks, blocks);
      const LogitRow row = logit_row(r);
      double count = 0, below = 0;  // how far the targets' logits are below the largest
      for (int64_t k = a.targets.indptr[target_row(r)]; k < a.targets.indptr[target_row(r) + 1]; ++k) {
        const float value = target_value(k);
        if (value == 0) continue;
        count += value;
        below += static_cast<double>(value) * (softmax.max - row.one(a.targets.indices[k]));
      }
      a.loss[r] = count == 0 ? 0.f : static_cast<float>(below + count * std::log(softmax.sum));
      row_max[r] = softmax.max;
      if (a.grad_rows) factor[r] = static_cast<float>(a.grad_rows[r] * count / softmax.sum);
    }
  });
  if (!a.grad_rows) return;

  // By columns, so that each one's sum has one owner and its rows are added in order: how wide a task is does not show.
  const int64_t share_of_columns = (N + 4 * threads - 1) / (4 * threads);
  const int64_t width = std::clamp<int64_t>((share_of_columns + 63) / 64 * 64, 64, kBlock);
  parallel_for((N + width - 1) / width, threads, [&](int64_t task, int) {
    const int64_t begin = task * width, end = std::min(begin + width, N);
    float column_sums[kBlock];
    for (int64_t first = 0; first < B; first += kTaskRows) {
      std::fill(column_sums, column_sums + width, 0.f);
      for (int64_t r = first; r < std::min(first + kTaskRows, B); ++r) {
        const LogitRow row = logit_row(r);
        for (int64_t j = begin; j < end; j += kLanes) {
          const Vec g = factor[r] * share(row.at(j), row_max[r]);
          store(column_sums + j - begin, load(column_sums + j - begin) + g);
          if (j + kLanes <= end)
            store(row.logits + j, g);
          else
            std::memcpy(row.logits + j, &g, sizeof(float) * (end - j));
        }
        const int32_t* last = a.targets.indices + a.targets.indptr[target_row(r) + 1];
        const int32_t* at = std::lower_bound(a.targets.indices + a.targets.indptr[target_row(r)], last, begin);
        for (; at < last && *at < end; ++at) {
          const float g = a.grad_rows[r] * target_value(at - a.targets.indices);
          row.logits[*at] -= g;
          column_sums[*at - begin] -= g;
        }
      }
      if (a.grad_bias)
        for (int64_t j = begin; j < end; ++j) a.grad_bias[j] += column_sums[j - begin];
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
