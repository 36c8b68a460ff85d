// The walk that distribution_kl and info_nce share: a block of rows at a time against all columns, the block's tile
// kept in cache between the pass that scores it and the pass that turns it into gradients.
//
// Columns are cut into chunks, and a worker keeps its chunks for the whole walk: a column's gradient has one owner, so
// nothing is reduced over threads, and a row's sums are added chunk by chunk in one order. The result is the same
// whatever the number of threads.
#pragma once
#include "common/workspace.h"
#include "cpu/score_tile.h"

namespace prorec {
namespace PRF_ISA {

constexpr int kMaxBlock = 192;   // rows of a block
constexpr int kMaxChunks = 32;   // parts of a row's sums
// A worker's share of the tiles. Larger than L2 on purpose: streaming them from L3 costs nothing measurable, and every
// block is a wake-up of all workers, which is dear where something else wants their cores.
constexpr int64_t kTileBytes = 8 << 20;

struct Sweep {
  int64_t rows, cols, depth;            // B, N, D
  int64_t padded_depth;                 // Dp
  int64_t block, padded_rows;           // rows of a block; B rounded up to it
  int64_t panels, chunks;
  int threads;
  bool gradients;

  float* x;             // [padded_rows][Dp] packed rows
  float* y_panels;      // [panels][D][64]
  float* y_rows;        // [panels * 64][Dp], with gradients
  float* tile;          // [panels][block][64] exponentials
  float* slot;          // the same, a second tile, or null
  float* grad_x_parts;  // [chunks][block][Dp]
  float* grad_x;        // [block][Dp] their sum
  float* grad_y;        // [panels * 64][Dp]

  PRF_INLINE_MEMBER int64_t chunk_begin(int64_t chunk) const { return chunk * panels / chunks; }
  PRF_INLINE_MEMBER float* tile_at(float* base, int64_t panel) const { return base + panel * block * kPanel; }
};

// Sizes for B rows against N columns; `tiles` is 1 or 2.
PRF_INLINE Sweep plan_sweep(int64_t rows, int64_t cols, int64_t depth, int tiles, bool gradients, int threads) {
  Sweep s{};
  s.rows = rows;
  s.cols = cols;
  s.depth = depth;
  s.padded_depth = round_up(depth, kLanes);
  s.panels = num_panels(cols);
  s.chunks = s.panels < kMaxChunks ? s.panels : kMaxChunks;
  s.threads = threads_for(rows * cols * depth, threads);
  if (s.threads > s.chunks) s.threads = static_cast<int>(s.chunks);
  s.gradients = gradients;
  const int64_t row_bytes = s.panels * kPanel * tiles * static_cast<int64_t>(sizeof(float)) / s.threads;
  int64_t block = kTileBytes / row_bytes / kTileRows * kTileRows;
  // Every block reads the columns and their gradients once. With no fewer rows than a column has entries that is no more
  // than the tile itself, wherever both are, and a tile holds no more than the columns do.
  const int64_t least = round_up(depth < 16 ? 16 : depth, kTileRows);
  block = block < least ? least : block;
  block = block > kMaxBlock ? kMaxBlock : block;
  const int64_t blocks = (rows + block - 1) / block;
  s.block = round_up((rows + blocks - 1) / blocks, kTileRows);  // blocks of equal size
  s.padded_rows = round_up(rows, s.block);
  return s;
}

PRF_INLINE size_t sweep_bytes(const Sweep& s, int tiles, bool own_grad_y) {
  using W = Workspace;
  const int64_t padded_cols = s.panels * kPanel;
  size_t bytes = W::bytes_for<float>(s.padded_rows * s.padded_depth) + W::bytes_for<float>(padded_cols * s.depth) +
                 tiles * W::bytes_for<float>(padded_cols * s.block);
  if (s.gradients)
    bytes += W::bytes_for<float>(padded_cols * s.padded_depth) * (own_grad_y ? 2 : 1) +
             W::bytes_for<float>((s.chunks + 1) * s.block * s.padded_depth);
  return bytes;
}

// Takes the sweep's memory; `grad_y` is the caller's [panels * 64][Dp] or null: then it is taken here, too.
PRF_INLINE void take_sweep(Sweep& s, Workspace& workspace, int tiles, float* grad_y) {
  const int64_t padded_cols = s.panels * kPanel;
  s.x = workspace.take<float>(s.padded_rows * s.padded_depth);
  s.y_panels = workspace.take<float>(padded_cols * s.depth);
  s.tile = workspace.take<float>(padded_cols * s.block);
  s.slot = tiles > 1 ? workspace.take<float>(padded_cols * s.block) : nullptr;
  if (!s.gradients) return;
  s.y_rows = workspace.take<float>(padded_cols * s.padded_depth);
  s.grad_x_parts = workspace.take<float>(s.chunks * s.block * s.padded_depth);
  s.grad_x = workspace.take<float>(s.block * s.padded_depth);
  s.grad_y = grad_y ? grad_y : workspace.take<float>(padded_cols * s.padded_depth);
}

// Op, duck-typed; row0 is a block's first row:
//   score(row0, chunk)              fill the chunk's tiles, partial sums per row
//   finish_scores(row0)             add the sums over chunks
//   kTransforms, transform(row0, chunk), finish_transform(row0)   a second pass over the tiles where one is needed
//   to_gradient(row0, panel)        turn tile(panel) into dL/d<x, y>
//   finish_gradient(row0)           take s.grad_x
template <class Op>
PRF_INLINE void run_sweep(const Sweep& s, Op& op) {
  const int64_t blocks = s.padded_rows / s.block, part = s.block * s.padded_depth;
  const auto gradient = [&](int64_t row0, int64_t chunk) {
    float* grad_x = s.grad_x_parts + chunk * part;
    for (int64_t i = 0; i < part; i += kLanes) store(grad_x + i, Vec{});
    for (int64_t p = s.chunk_begin(chunk); p < s.chunk_begin(chunk + 1); ++p) {
      op.to_gradient(row0, p);
      const float* g = s.tile_at(s.tile, p);
      const int64_t offset = p * kPanel * s.padded_depth;
      if (row0 == 0) std::memset(s.grad_y + offset, 0, sizeof(float) * kPanel * s.padded_depth);
      add_product(g, kPanel, 1, s.y_rows + offset, s.padded_depth, kPanel, grad_x, s.padded_depth, s.block,
                  s.padded_depth);
      add_product(g, 1, kPanel, s.x + row0 * s.padded_depth, s.padded_depth, s.block, s.grad_y + offset,
                  s.padded_depth, kPanel, s.padded_depth);
    }
  };
  // Block i is scored in the same region in which block i - 1 becomes gradients: one wake-up a block.
  for (int64_t i = 0; i < blocks + (s.gradients ? 1 : 0); ++i) {
    const int64_t row0 = i * s.block;
    parallel_for(s.threads, s.threads, [&](int64_t worker, int) {
      for (int64_t c = worker * s.chunks / s.threads; c < (worker + 1) * s.chunks / s.threads; ++c) {
        if (s.gradients && i > 0) gradient(row0 - s.block, c);
        if (i < blocks) op.score(row0, c);
      }
    });
    if (s.gradients && i > 0) {
      for (int64_t k = 0; k < part; k += kLanes) {
        Vec sum = load(s.grad_x_parts + k);
        for (int64_t c = 1; c < s.chunks; ++c) sum += load(s.grad_x_parts + c * part + k);
        store(s.grad_x + k, sum);
      }
      op.finish_gradient(row0 - s.block);
    }
    if (i == blocks) break;
    op.finish_scores(row0);
    if (!Op::kTransforms) continue;
    parallel_for(s.threads, s.threads, [&](int64_t worker, int) {
      for (int64_t c = worker * s.chunks / s.threads; c < (worker + 1) * s.chunks / s.threads; ++c)
        op.transform(row0, c);
    });
    op.finish_transform(row0);
  }
}

// From the sweep's grad_y to the columns' own gradients: through the scale's base and the norm. `cols` are the columns'
// rows in grad_out, which is added to; null: all in order, and grad_out, which may be s.grad_y itself, is stored to.
inline void finish_columns(const Sweep& s, const float* inv_norm, const int64_t* cols, float* grad_out) {
  const auto finish = [&](int64_t j) {
    const float* norm = inv_norm ? inv_norm + j : nullptr;
    const float *unit = s.y_rows + j * s.padded_depth, *grad = s.grad_y + j * s.padded_depth;
    if (cols)
      unnormalize<true>(unit, 1.f, norm, grad, kLn2, s.depth, grad_out + cols[j] * s.depth);
    else
      unnormalize<false>(unit, 1.f, norm, grad, kLn2, s.depth, grad_out + j * s.depth);
  };
  // Equal entries of `cols` add to one row, so these stay on one thread.
  parallel_for(s.panels, cols ? 1 : s.threads, [&](int64_t p, int) {
    for (int64_t j = p * kPanel; j < s.cols && j < (p + 1) * kPanel; ++j) finish(j);
  });
}

// One where a panel's column exists: the last panel may be short.
struct ColumnMask {
  float lanes[kPanel];
  bool partial;

  PRF_INLINE_MEMBER ColumnMask(int64_t panel, int64_t cols) : partial(cols < (panel + 1) * kPanel) {
    for (int j = 0; j < kPanel; ++j) lanes[j] = panel * kPanel + j < cols ? 1.f : 0.f;
  }
};

// Columns that do not exist take the score of the panel's first, which leaves maxima as they are.
PRF_INLINE void fill_absent(const ColumnMask& mask, float* scores, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    for (int j = 0; j < kPanel; ++j)
      if (mask.lanes[j] == 0) scores[r * kPanel + j] = scores[r * kPanel];
}

// A row's sum of 2^(score - max), with the running maximum of the columns seen so far.
struct RunningSum {
  float max = -HUGE_VALF, sum = 0;

  // `factors` ([64], or null: 1) multiply the exponentials.
  PRF_INLINE_MEMBER void add(const float* scores, const float* factors) {
    Vec top = load(scores);
    for (int v = 1; v < kPanel / kLanes; ++v) top = prorec::PRF_ISA::max(top, load(scores + v * kLanes));
    const float m = reduce_max(top);
    if (m > max) {
      sum *= std::exp2(max - m);
      max = m;
    }
    Vec total{};
    for (int v = 0; v < kPanel / kLanes; ++v) {
      const Vec e = exp2_bounded_above(load(scores + v * kLanes) - max);
      total += factors ? e * load(factors + v * kLanes) : e;
    }
    sum += reduce_add(total);
  }

  PRF_INLINE_MEMBER void add(const RunningSum& other) {
    if (other.max > max) {
      sum *= std::exp2(max - other.max);
      max = other.max;
    }
    sum += other.max == -HUGE_VALF ? other.sum : other.sum * std::exp2(other.max - max);
  }
};

// Whether 2^(score - bound) can neither overflow nor underflow for scores of unit rows times `scale`, so that a fixed
// shift serves in place of the maximum.
PRF_INLINE bool bounded(float scale, bool normalize) { return normalize && 2 * scale * kLog2e < 120; }

}  // namespace PRF_ISA
}  // namespace prorec
