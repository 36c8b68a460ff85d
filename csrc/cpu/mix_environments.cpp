// A piece of every profile is read once, as float32, and stays in the first-level cache while each environment's mixture
// of it is written.
#include "ops/mix_environments.h"

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int64_t kPiece = 512;      // columns
constexpr int64_t kTaskSize = 8192;  // columns of the output a task and environment

// To nearest, ties to even; a NaN stays one.
PRF_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t u = bits<uint32_t>(x);
  return static_cast<uint16_t>(x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

PRF_INLINE void mix(const float* const* profiles, const float* weights, int64_t num_profiles, int64_t n, float* out) {
  constexpr int kVecs = 4;
  int64_t c = 0;
  for (; c + kVecs * kLanes <= n; c += kVecs * kLanes) {
    Vec sum[kVecs] = {};
    for (int64_t k = 0; k < num_profiles; ++k)
      for (int v = 0; v < kVecs; ++v) sum[v] += weights[k] * load(profiles[k] + c + v * kLanes);
    for (int v = 0; v < kVecs; ++v) store(out + c + v * kLanes, sum[v]);
  }
  for (; c + kLanes <= n; c += kLanes) {
    Vec sum{};
    for (int64_t k = 0; k < num_profiles; ++k) sum += weights[k] * load(profiles[k] + c);
    store(out + c, sum);
  }
  for (; c < n; ++c) {
    float sum = 0;
    for (int64_t k = 0; k < num_profiles; ++k) sum += weights[k] * profiles[k][c];
    out[c] = sum;
  }
}

}  // namespace

void mix_environments(const MixEnvironmentsArgs& a) {
  const MatrixView& first = a.profiles.first;
  const int64_t K = a.profiles.count, E = a.environments, R = first.rows, C = first.cols;
  const bool wide = first.dtype == DType::kFloat32;
  const int64_t width = C < kPiece ? C : kPiece, row_pieces = (C + width - 1) / width, pieces = R * row_pieces;
  const int64_t task_pieces = kTaskSize / width;
  const int threads = threads_for(E * K * R * C, a.threads);
  Workspace workspace(Workspace::bytes_for<const float*>(threads * K) +
                      Workspace::bytes_for<float>(threads * (K + 1) * width));
  const float** inputs = workspace.take<const float*>(threads * K);
  float* scratch = workspace.take<float>(threads * (K + 1) * width);

  parallel_for((pieces + task_pieces - 1) / task_pieces, threads, [&](int64_t task, int slot) {
    const float** input = inputs + slot * K;
    float *converted = scratch + slot * (K + 1) * width, *mixture = converted + K * width;
    for (int64_t p = task * task_pieces; p < pieces && p < (task + 1) * task_pieces; ++p) {
      const int64_t row = p / row_pieces, begin = p % row_pieces * width, n = C - begin < width ? C - begin : width;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t at = k * a.profiles.apart + row * first.stride + begin;
        if (wide) {
          input[k] = static_cast<const float*>(first.data) + at;
          continue;
        }
        const uint16_t* source = static_cast<const uint16_t*>(first.data) + at;
        float* to = converted + k * width;
        for (int64_t c = 0; c < n; ++c) to[c] = to_float(source[c]);
        input[k] = to;
      }
      for (int64_t e = 0; e < E; ++e) {
        const int64_t at = (e * R + row) * C + begin;
        if (wide) {
          mix(input, a.weights + e * K, K, n, static_cast<float*>(a.out) + at);
          continue;
        }
        mix(input, a.weights + e * K, K, n, mixture);
        uint16_t* out = static_cast<uint16_t*>(a.out) + at;
        for (int64_t c = 0; c < n; ++c) out[c] = to_bfloat16(mixture[c]);
      }
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
