// Forward: a warp a triplet, then one block that adds the blocks' parts in order. Backward: the batch's entries are
// sorted by their row, and the warp at a row's first entry owns the row's gradients.
#include "ops/environment_bpr.h"

#include <type_traits>

#include "common/environment_loss.h"
#include "cuda/element.h"

namespace prorec {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLongRun = 32;  // entries; the row of more than these a block shares

// A node's R rows, from one column on: at(k) is that column of row k.
template <class T>
struct Rows {
  const T *base, *profile;
  int64_t apart;

  __device__ __forceinline__ Rows(const ProfiledTables& t, int64_t row, int64_t column)
      : base(static_cast<const T*>(t.base.data) + row * t.base.stride + column),
        profile(static_cast<const T*>(t.profiles.first.data) + row * t.profiles.first.stride + column),
        apart(t.profiles.apart) {}

  __device__ __forceinline__ float at(int table) const {
    return to_float(table ? profile[(table - 1) * apart] : *base);
  }
};

__device__ __forceinline__ float add_lanes(float x) {
  for (int flip = kWarp / 2; flip > 0; flip /= 2) x += __shfl_xor_sync(kFullMask, x, flip);
  return x;
}

// kAtOnce environments are mixed with one reading of the rows; a lane has every 32nd column.
template <class T, int kAtOnce>
__global__ void __launch_bounds__(kThreads, kAtOnce > 4 ? 3 : 4) environment_bpr_kernel(EnvironmentBprCudaArgs a) {
  using Weights = Group<float, kAtOnce>;
  __shared__ double sums[kWarps][kMaxEnvironments];
  Weights* theta = dynamic_shared<Weights>();  // [K, groups]
  const EnvironmentBprArgs& op = a.op;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int E = op.environments, K = op.profiles, groups = static_cast<int>(ceil_div(E, kAtOnce));
  const int64_t B = op.batch, D = op.user.base.cols, M = op.user.base.rows, N = op.item.base.rows;
  for (int n = threadIdx.x; n < K * groups * kAtOnce; n += kThreads) {
    const int k = n / (groups * kAtOnce), e = n % (groups * kAtOnce);
    theta[n / kAtOnce].value[n % kAtOnce] = e < E ? op.weights[e * K + k] : 0.f;
  }
  __syncthreads();

  double sum = 0;  // of the environment that is the lane's
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + warp; b < B; b += stride) {
    const int64_t u = op.users[b], i = op.positives[b], j = op.negatives[b];
    if (u < 0 || u >= M || i < 0 || i >= N || j < 0 || j >= N) __trap();
    if (a.keys && lane < 3) a.keys[lane * B + b] = static_cast<int32_t>(lane == 0 ? u : M + (lane == 1 ? i : j));
    float mine = 0;
    for (int g = 0; g < groups; ++g) {
      float score[kAtOnce] = {};
      for (int64_t c = lane; c < D; c += kWarp) {
        float x[kAtOnce], y[kAtOnce];
        const Rows<T> user(op.user, u, c), positive(op.item, i, c), negative(op.item, j, c);
        const float first = user.at(0), difference = negative.at(0) - positive.at(0);
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) x[n] = first, y[n] = difference;
#pragma unroll 2
        for (int k = 0; k < K; ++k) {
          const Weights weight = theta[k * groups + g];
          const float p = user.at(1 + k), q = negative.at(1 + k) - positive.at(1 + k);
#pragma unroll
          for (int n = 0; n < kAtOnce; ++n) {
            x[n] += weight.value[n] * p;
            y[n] += weight.value[n] * q;
          }
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) score[n] += x[n] * y[n];
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const float found = add_lanes(score[n]);
        if (lane == g * kAtOnce + n) mine = found;
      }
    }
    if (lane < E) {
      const float e = expf(-fabsf(mine));
      if (op.sigmoid) op.sigmoid[b * E + lane] = (mine > 0 ? 1.f : e) / (1.f + e);
      sum += fmaxf(mine, 0.f) + log1pf(e);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && lane < E) {
    for (int w = 1; w < kWarps; ++w) sum += sums[w][lane];
    a.parts[static_cast<int64_t>(blockIdx.x) * E + lane] = sum;
  }
}

// One block: a warp an environment, then the results.
__global__ void __launch_bounds__(kThreads) environment_bpr_finish_kernel(EnvironmentBprCudaArgs a) {
  const EnvironmentBprArgs& op = a.op;
  const int lane = threadIdx.x % kWarp, E = op.environments;
  for (int e = threadIdx.x / kWarp; e < E; e += kWarps) {
    double sum = 0;
    for (int n = lane; n < a.blocks; n += kWarp) sum += a.parts[static_cast<int64_t>(n) * E + e];
    for (int flip = kWarp / 2; flip > 0; flip /= 2) sum += __shfl_xor_sync(kFullMask, sum, flip);
    if (lane == 0)
      op.losses[e] = static_cast<float>((op.batch ? sum / op.batch : 0) + (op.alignment ? op.alignment[e] : 0));
  }
  __syncthreads();
  if (threadIdx.x == 0) finish_losses(op);
}

// The entries from `n` on with the key of entry `n`; the whole warp calls it.
__device__ __forceinline__ int64_t run_length(const int32_t* keys, int64_t n, int64_t entries, int lane) {
  const int32_t key = keys[n];
  const unsigned differ = __ballot_sync(kFullMask, n + lane >= entries || keys[n + lane] != key);
  if (differ) return __ffs(static_cast<int>(differ)) - 1;
  int64_t low = n + kWarp, high = entries;  // the run ends between them
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (keys[middle] == key)
      low = middle + 1;
    else
      high = middle;
  }
  return low - n;
}

// What a block shares, before products [E, kTables, kPitch]. With many environments it is more than 48 KB, so all of it is
// dynamic.
template <int kTables>
struct Shared {
  static constexpr int kPitch = (kTables + 3) / 4 * 4, kOuter = kTables * kPitch;
  Group<float, 4> outer[kWarps][kOuter / 4];  // S_b of each warp's entry
  float parts[kWarps][kTables][kWarp];
  float scale[kMaxEnvironments];
  int64_t counts[kWarps];
};

// kTables is R or more. A row's gradients are sums over its entries of S_b applied to the rows of the other side, where
// S_b = sum_e dL/dx_be b_e b_e^T.
template <class T, int kTables>
__global__ void __launch_bounds__(kThreads, kTables > 9 ? 2 : kTables > 5 ? 3 : 4)
    environment_bpr_bwd_kernel(EnvironmentBprBwdCudaArgs a) {
  constexpr int kPitch = Shared<kTables>::kPitch, kOuter = Shared<kTables>::kOuter;
  Shared<kTables>& shared = *dynamic_shared<Shared<kTables>>();
  float* products = reinterpret_cast<float*>(&shared + 1);
  const EnvironmentBprArgs& op = a.op.op;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int E = op.environments, K = op.profiles;
  const int64_t B = op.batch, D = op.user.base.cols, M = op.user.base.rows, entries = 3 * B;

  if (threadIdx.x < E) {
    const double grad = grad_loss(a.op, threadIdx.x);
    if (blockIdx.x == 0) a.op.grad_alignment[threadIdx.x] = static_cast<float>(grad);
    shared.scale[threadIdx.x] = static_cast<float>(-grad / (B ? B : 1));
  }
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  int64_t count = 0;
  if (n < entries && (n == 0 || a.keys[n - 1] != a.keys[n])) {
    const bool is_user = a.keys[n] < M;
    const bool wanted = is_user ? a.op.grad_user || a.op.grad_user_profiles : a.op.grad_item || a.op.grad_item_profiles;
    if (wanted) count = run_length(a.keys, n, entries, lane);
  }
  if (lane == 0) shared.counts[warp] = count;
  __syncthreads();
  for (int p = threadIdx.x; p < E * kOuter; p += kThreads) {
    const int e = p / kOuter, k = p % kOuter / kPitch, l = p % kPitch;
    const auto b = [&](int table) { return table ? op.weights[e * K + table - 1] : 1.f; };
    products[p] = k <= K && l <= K ? shared.scale[e] * b(k) * b(l) : 0.f;
  }
  __syncthreads();

  // sum[k] += column c of every `step`-th entry's share.
  const auto add_entries = [&](int64_t begin, int64_t end, int step, int64_t c, float (&sum)[kTables]) {
    for (int64_t at = begin; at < end; at += step) {
      const int64_t entry = a.order[at], b = entry - (entry < B ? 0 : entry < 2 * B ? B : 2 * B);
      for (int p = lane; p < kOuter; p += kWarp) {
        float found = 0;
        for (int e = 0; e < E; ++e) found += op.sigmoid[b * E + e] * products[e * kOuter + p];
        shared.outer[warp][p / 4].value[p % 4] = found;
      }
      __syncwarp();
      float other[kTables] = {};
      if (c < D) {
        if (entry < B) {
          const Rows<T> positive(op.item, op.positives[b], c), negative(op.item, op.negatives[b], c);
#pragma unroll
          for (int l = 0; l < kTables; ++l)
            if (l <= K) other[l] = positive.at(l) - negative.at(l);
        } else {
          const Rows<T> user(op.user, op.users[b], c);
          const float sign = entry < 2 * B ? 1.f : -1.f;
#pragma unroll
          for (int l = 0; l < kTables; ++l)
            if (l <= K) other[l] = sign * user.at(l);
        }
      }
#pragma unroll
      for (int l = 0; l < kTables; ++l) {
        if (l > K) break;
#pragma unroll
        for (int k = 0; k < kTables; k += 4) {
          const Group<float, 4> four = shared.outer[warp][(l * kPitch + k) / 4];
#pragma unroll
          for (int m = 0; m < 4; ++m)
            if (k + m < kTables) sum[k + m] += four.value[m] * other[l];
        }
      }
      __syncwarp();
    }
  };
  const auto write_row = [&](int32_t key, int64_t c, const float (&sum)[kTables]) {
    if (c >= D) return;
    const bool is_user = key < M;
    const int64_t rows = is_user ? M : op.item.base.rows, r = is_user ? key : key - M;
    T* base = static_cast<T*>(is_user ? a.op.grad_user : a.op.grad_item);
    T* profiles = static_cast<T*>(is_user ? a.op.grad_user_profiles : a.op.grad_item_profiles);
    if (base) base[r * D + c] = from_float<T>(sum[0]);
#pragma unroll
    for (int k = 1; k < kTables; ++k)
      if (k <= K && profiles) profiles[((k - 1) * rows + r) * D + c] = from_float<T>(sum[k]);
  };

  for (int w = 0; w < kWarps; ++w) {
    if (shared.counts[w] <= kLongRun) continue;
    const int64_t begin = n - warp + w, end = begin + shared.counts[w];
    for (int64_t c = lane; c - lane < D; c += kWarp) {
      float sum[kTables] = {};
      add_entries(begin + warp, end, kWarps, c, sum);
#pragma unroll
      for (int k = 0; k < kTables; ++k) shared.parts[warp][k][lane] = sum[k];
      __syncthreads();
      if (warp == w) {
#pragma unroll
        for (int k = 0; k < kTables; ++k) {
          sum[k] = 0;
          for (int other = 0; other < kWarps; ++other) sum[k] += shared.parts[other][k][lane];
        }
        write_row(a.keys[begin], c, sum);
      }
      __syncthreads();
    }
  }
  if (count == 0 || count > kLongRun) return;
  for (int64_t c = lane; c - lane < D; c += kWarp) {
    float sum[kTables] = {};
    add_entries(n, n + count, 1, c, sum);
    write_row(a.keys[n], c, sum);
  }
}

// Calls body with a constant of at least R = 1 + K.
template <class Body>
void with_tables(int profiles, const Body& body) {
  if (profiles <= 2)
    body(std::integral_constant<int, 3>());
  else if (profiles <= 4)
    body(std::integral_constant<int, 5>());
  else if (profiles <= 8)
    body(std::integral_constant<int, 9>());
  else
    body(std::integral_constant<int, 1 + kMaxProfiles>());
}

}  // namespace

void environment_bpr(const EnvironmentBprCudaArgs& a, Stream stream) {
  const int E = a.op.environments, at_once = E <= 4 ? 4 : 8;
  const size_t shared_bytes = sizeof(float) * a.op.profiles * ceil_div(E, at_once) * at_once;
  with_element_type(a.op.user.base.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    launch("environment_bpr", at_once == 4 ? environment_bpr_kernel<T, 4> : environment_bpr_kernel<T, 8>,
           static_cast<unsigned>(a.blocks), kThreads, shared_bytes, stream, a);
  });
  launch("environment_bpr", environment_bpr_finish_kernel, 1, kThreads, 0, stream, a);
}

void environment_bpr_bwd(const EnvironmentBprBwdCudaArgs& a, Stream stream) {
  const EnvironmentBprArgs& op = a.op.op;
  const int64_t blocks = op.batch ? ceil_div(3 * op.batch, kWarps) : 1;  // one for the alignment's gradient
  with_element_type(op.user.base.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    with_tables(op.profiles, [&](auto tables) {
      const size_t shared_bytes = sizeof(Shared<tables>) + sizeof(float) * op.environments * Shared<tables>::kOuter;
      launch("environment_bpr_bwd", environment_bpr_bwd_kernel<T, tables>, static_cast<unsigned>(blocks), kThreads,
             shared_bytes, stream, a);
    });
  });
}

}  // namespace cuda
}  // namespace prorec
