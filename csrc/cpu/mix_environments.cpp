// A piece of every profile is read once, as float32, and stays in the first-level cache while the environments' mixtures
// of it are written.
#include "ops/mix_environments.h"

#include "common/workspace.h"
#include "cpu/rows.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int kEnvs = 4;             // environments at a time
constexpr int64_t kPiece = 512;      // columns
constexpr int64_t kTaskSize = 8192;  // columns a task

// To nearest, ties to even; a NaN stays one.
PRF_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t u = bits<uint32_t>(x);
  return static_cast<uint16_t>(x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// out[e][c] = sum_k weights[e][k] profiles[k][c] for kEnvs environments, whose sums are held in registers.
template <int kEnvs>
PRF_INLINE void mix(const float* const* profiles, const float* weights, int64_t num_profiles, int64_t n, float* out,
                    int64_t out_row) {
  constexpr int kVecs = kEnvs == 1 ? 4 : 2;
  int64_t c = 0;
  for (; c + kVecs * kLanes <= n; c += kVecs * kLanes) {
    Vec sum[kEnvs][kVecs] = {};
    for (int64_t k = 0; k < num_profiles; ++k)
      for (int v = 0; v < kVecs; ++v) {
        const Vec x = load(profiles[k] + c + v * kLanes);
        for (int e = 0; e < kEnvs; ++e) sum[e][v] += weights[e * num_profiles + k] * x;
      }
    for (int e = 0; e < kEnvs; ++e)
      for (int v = 0; v < kVecs; ++v) store(out + e * out_row + c + v * kLanes, sum[e][v]);
  }
  for (; c < n; ++c)
    for (int e = 0; e < kEnvs; ++e) {
      float sum = 0;
      for (int64_t k = 0; k < num_profiles; ++k) sum += weights[e * num_profiles + k] * profiles[k][c];
      out[e * out_row + c] = sum;
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
                      Workspace::bytes_for<float>(threads * (K + kEnvs) * width));
  const float** inputs = workspace.take<const float*>(threads * K);
  float* scratch = workspace.take<float>(threads * (K + kEnvs) * width);

  parallel_for((pieces + task_pieces - 1) / task_pieces, threads, [&](int64_t task, int slot) {
    const float** input = inputs + slot * K;
    float *converted = scratch + slot * (K + kEnvs) * width, *mixtures = converted + K * width;
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
      for (int64_t e = 0; e < E;) {
        const int64_t at = (e * R + row) * C + begin, envs = E - e < kEnvs ? 1 : kEnvs;
        float* to = wide ? static_cast<float*>(a.out) + at : mixtures;
        const int64_t to_row = wide ? R * C : width;
        if (envs == 1)
          mix<1>(input, a.weights + e * K, K, n, to, to_row);
        else
          mix<kEnvs>(input, a.weights + e * K, K, n, to, to_row);
        if (!wide)
          for (int64_t i = 0; i < envs; ++i) {
            uint16_t* out = static_cast<uint16_t*>(a.out) + at + i * R * C;
            for (int64_t c = 0; c < n; ++c) out[c] = to_bfloat16(mixtures[i * width + c]);
          }
        e += envs;
      }
    }
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
