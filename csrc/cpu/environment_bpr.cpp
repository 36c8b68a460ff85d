// Forward, a triplet at a time: mixed rows in registers, their product, the losses. Backward, with
// S_b = sum_e dL/dx_be b_e b_e^T ([R, R], whatever the width): a row's gradient has one owner, which adds
//   dU_k[u] = sum_b sum_l S_b,kl (I_l[i] - I_l[j]),   dI_l[i] = -dI_l[j] = sum_b sum_k S_b,kl U_k[u]
// over the row's triplets in the batch's order, and clears the rows of no triplet.
#include "ops/environment_bpr.h"

#include <type_traits>

#include "common/environment_loss.h"
#include "common/workspace.h"
#include "cpu/rows.h"
#include "cpu/softplus.h"

namespace prorec {
namespace PRF_ISA {
namespace {

constexpr int kMaxTables = 1 + kMaxProfiles;
constexpr int64_t kBlock = 64;            // triplets a task
constexpr int64_t kOwnerRows = 64;        // rows of gradients a task
constexpr int64_t kAhead = 4;             // triplets between a prefetch and its use
constexpr int64_t kPrefetchBytes = 256;   // of a row; what follows it the processor fetches by itself

using U16 = uint16_t __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
using U32 = uint32_t __attribute__((vector_size(kLanes * 4)));

PRF_INLINE Vec load_row(const float* p) { return load(p); }
PRF_INLINE Vec load_row(const uint16_t* p) {
  return bits<Vec>(__builtin_convertvector(*reinterpret_cast<const U16*>(p), U32) << 16);
}

// The columns from p on, of which there are `count` or, unless kPart, as many as there are lanes.
template <bool kPart, class T>
PRF_INLINE Vec load_columns(const T* p, int64_t count) {
  if (!kPart) return load_row(p);
  T padded[kLanes] = {};
  std::memcpy(padded, p, sizeof(T) * count);
  return load_row(padded);
}

// Calls body(first column, vectors, whether the last is a part) for blocks of at most two vectors.
template <class Body>
PRF_INLINE void for_columns(int64_t D, const Body& body) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= D; c += 2 * kLanes) body(c, std::integral_constant<int, 2>(), std::false_type());
  for (; c + kLanes <= D; c += kLanes) body(c, std::integral_constant<int, 1>(), std::false_type());
  if (c < D) body(c, std::integral_constant<int, 1>(), std::true_type());
}

template <class T>
struct Tables {
  const T *base, *profiles;
  int64_t base_stride, stride, apart;

  explicit Tables(const ProfiledTables& t)
      : base(static_cast<const T*>(t.base.data)), profiles(static_cast<const T*>(t.profiles.first.data)),
        base_stride(t.base.stride), stride(t.profiles.first.stride), apart(t.profiles.apart) {}

  PRF_INLINE_MEMBER const T* row(int table, int64_t r) const {
    return table ? profiles + (table - 1) * apart + r * stride : base + r * base_stride;
  }
  template <int kTables>
  PRF_INLINE_MEMBER void prefetch(int64_t r, int tables, int64_t bytes) const {
    for (int k = 0; k < (kTables ? kTables : tables); ++k)
      for (int64_t byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row(k, r)) + byte);
  }
};

PRF_INLINE int64_t prefetched_bytes(int64_t bytes) { return bytes < kPrefetchBytes ? bytes : kPrefetchBytes; }

// b_e for every environment: [E, R].
PRF_INLINE void mixing(const EnvironmentBprArgs& a, float* mix) {
  for (int e = 0; e < a.environments; ++e) {
    *mix++ = 1;
    for (int k = 0; k < a.profiles; ++k) *mix++ = a.weights[e * a.profiles + k];
  }
}

// x_be of the triplets [b0, b0 + rows) to scores[e * kBlock + b - b0], negated. kTables is R, or 0 for any number.
template <class T, int kTables>
void score_block(const EnvironmentBprArgs& a, const float* mix, int64_t b0, int64_t rows, float* scores) {
  const int R = kTables ? kTables : 1 + a.profiles, E = a.environments;
  const int64_t D = a.user.base.cols, bytes = prefetched_bytes(D * sizeof(T));
  const Tables<T> user(a.user), item(a.item);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = b0 + r;
    if (b + kAhead < a.batch) {
      user.template prefetch<kTables>(a.users[b + kAhead], R, bytes);
      item.template prefetch<kTables>(a.positives[b + kAhead], R, bytes);
      item.template prefetch<kTables>(a.negatives[b + kAhead], R, bytes);
    }
    const int64_t u = a.users[b], i = a.positives[b], j = a.negatives[b];
    Vec sum[kMaxEnvironments];
    for (int e = 0; e < E; ++e) sum[e] = Vec{};
    for_columns(D, [&](int64_t c, auto vectors, auto part) __attribute__((always_inline)) {
      constexpr int kVecs = vectors;
      constexpr int kCount = kTables ? kTables : kMaxTables;
      Vec x[kCount][kVecs], y[kCount][kVecs];
      for (int k = 0; k < R; ++k)
        for (int v = 0; v < kVecs; ++v) {
          const int64_t at = c + v * kLanes;
          x[k][v] = load_columns<part>(user.row(k, u) + at, D - at);
          y[k][v] = load_columns<part>(item.row(k, j) + at, D - at) - load_columns<part>(item.row(k, i) + at, D - at);
        }
      for (int e = 0; e < E; ++e) {
        const float* weight = mix + e * R;
        for (int v = 0; v < kVecs; ++v) {
          Vec mixed_x = x[0][v], mixed_y = y[0][v];
          for (int k = 1; k < R; ++k) {
            mixed_x += weight[k] * x[k][v];
            mixed_y += weight[k] * y[k][v];
          }
          sum[e] += mixed_x * mixed_y;
        }
      }
    });
    for (int e = 0; e < E; ++e) scores[e * kBlock + r] = reduce_add(sum[e]);
  }
}

// The batch's entries by their row: row r has order[end[r - 1]] to order[end[r]], as they came. end[-1] is 0.
void group(const int64_t* const* indices, int count, int64_t batch, int64_t rows, int64_t* end, int64_t* order) {
  std::memset(end - 1, 0, sizeof(int64_t) * (rows + 1));
  for (int n = 0; n < count; ++n)
    for (int64_t b = 0; b < batch; ++b) ++end[indices[n][b]];
  int64_t total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t begin = total;
    total += end[r];
    end[r] = begin;
  }
  for (int n = 0; n < count; ++n)
    for (int64_t b = 0; b < batch; ++b) order[end[indices[n][b]]++] = n * batch + b;
}

// One side's gradients and what they are made of.
struct Owners {
  float *grad, *grad_profiles;
  int64_t rows;
  const int64_t *end, *order;
  int64_t tasks;
};

// Gradients of rows [first, last) of one side, the users' or else the items'. `outer` has S_b in rows of `pitch`.
template <class T, int kTables, bool kUsers>
void owner_rows(const EnvironmentBprArgs& a, const Owners& own, const float* outer, int64_t pitch, int64_t first,
                int64_t last) {
  const int R = kTables ? kTables : 1 + a.profiles;
  const int64_t D = a.user.base.cols, B = a.batch, bytes = prefetched_bytes(D * sizeof(T));
  const Tables<T> user(a.user), item(a.item);
  const int64_t entries = own.end[own.rows - 1];
  const auto target = [&](int k, int64_t r) {
    return k ? own.grad_profiles ? own.grad_profiles + ((k - 1) * own.rows + r) * D : nullptr
             : own.grad ? own.grad + r * D : nullptr;
  };
  for (int64_t r = first; r < last; ++r) {
    const int64_t begin = own.end[r - 1], end = own.end[r];
    if (begin == end) {
      for (int k = 0; k < R; ++k)
        if (float* to = target(k, r)) std::memset(to, 0, sizeof(float) * D);
      continue;
    }
    for_columns(D, [&](int64_t c, auto vectors, auto part) __attribute__((always_inline)) {
      constexpr int kVecs = vectors;
      Vec sum[kTables ? kTables : kMaxTables][kVecs];
      for (int k = 0; k < R; ++k)
        for (int v = 0; v < kVecs; ++v) sum[k][v] = Vec{};
      for (int64_t n = begin; n < end; ++n) {
        if (c == 0 && n + kAhead < entries) {
          const int64_t ahead = own.order[n + kAhead];
          if (kUsers) {
            item.template prefetch<kTables>(a.positives[ahead], R, bytes);
            item.template prefetch<kTables>(a.negatives[ahead], R, bytes);
          } else {
            user.template prefetch<kTables>(a.users[ahead < B ? ahead : ahead - B], R, bytes);
          }
        }
        const int64_t b = own.order[n] < B ? own.order[n] : own.order[n] - B;
        const float sign = own.order[n] < B ? 1.f : -1.f;
        const float* s = outer + b * pitch;
        for (int l = 0; l < R; ++l)
          for (int v = 0; v < kVecs; ++v) {
            const int64_t at = c + v * kLanes;
            const Vec other = kUsers ? load_columns<part>(item.row(l, a.positives[b]) + at, D - at) -
                                           load_columns<part>(item.row(l, a.negatives[b]) + at, D - at)
                                     : sign * load_columns<part>(user.row(l, a.users[b]) + at, D - at);
            for (int k = 0; k < R; ++k) sum[k][v] += s[l * R + k] * other;
          }
      }
      for (int k = 0; k < R; ++k)
        if (float* to = target(k, r))
          for (int v = 0; v < kVecs; ++v) {
            if (part)
              std::memcpy(to + c, &sum[k][v], sizeof(float) * (D - c));
            else
              store(to + c + v * kLanes, sum[k][v]);
          }
    });
  }
}

// Calls body with R as a constant where it is one of the usual ones, else with 0.
template <int kTables = 2, class Body>
PRF_INLINE void with_tables(int tables, const Body& body) {
  if constexpr (kTables > 9)
    body(std::integral_constant<int, 0>());
  else if (tables == kTables)
    body(std::integral_constant<int, kTables>());
  else
    with_tables<kTables + 1>(tables, body);
}

template <class Body>
PRF_INLINE void with_element(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32)
    body(float());
  else
    body(uint16_t());
}

int64_t multiply_adds(const EnvironmentBprArgs& a) {
  return 2 * a.batch * a.user.base.cols * (1 + a.profiles) * a.environments;
}

}  // namespace

void environment_bpr(const EnvironmentBprArgs& a) {
  const int64_t B = a.batch, blocks = (B + kBlock - 1) / kBlock;
  const int R = 1 + a.profiles, E = a.environments, threads = threads_for(multiply_adds(a), a.threads);
  Workspace workspace(Workspace::bytes_for<float>(E * R) + Workspace::bytes_for<double>(blocks * E));
  float* mix = workspace.take<float>(E * R);
  double* sums = workspace.take<double>(blocks * E);
  mixing(a, mix);

  with_element(a.user.base.dtype, [&](auto element) {
    with_tables(R, [&](auto tables) {
      parallel_for(blocks, threads, [&](int64_t block, int) {
        const int64_t b0 = block * kBlock, rows = B - b0 < kBlock ? B - b0 : kBlock;
        float scores[kMaxEnvironments * kBlock] = {};
        score_block<decltype(element), tables>(a, mix, b0, rows, scores);
        for (int e = 0; e < E; ++e) {
          double sum = 0;
          for (int64_t r = 0; r < rows; r += kLanes) {
            const Softplus found = softplus(load(scores + e * kBlock + r));
            for (int lane = 0; lane < kLanes && r + lane < rows; ++lane) {
              sum += found.value[lane];
              if (a.sigmoid) a.sigmoid[(b0 + r + lane) * E + e] = found.sigmoid[lane];
            }
          }
          sums[block * E + e] = sum;
        }
      });
    });
  });
  for (int e = 0; e < E; ++e) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block * E + e];
    a.losses[e] = static_cast<float>((B ? sum / B : 0) + (a.alignment ? a.alignment[e] : 0));
  }
  finish_losses(a);
}

void environment_bpr_bwd(const EnvironmentBprBwdArgs& a) {
  const EnvironmentBprArgs& op = a.op;
  const int64_t B = op.batch, M = op.user.base.rows, N = op.item.base.rows;
  const int R = 1 + op.profiles, E = op.environments, threads = threads_for(multiply_adds(op), op.threads);
  const int64_t pitch = (R * R + kLanes - 1) / kLanes * kLanes;
  const auto ints = [](int64_t count) { return Workspace::bytes_for<int64_t>(count); };
  Workspace workspace(Workspace::bytes_for<float>(E * (R + pitch)) + Workspace::bytes_for<float>(B * pitch) +
                      ints(M + 1) + ints(B) + ints(N + 1) + ints(2 * B));
  float *mix = workspace.take<float>(E * (R + pitch)), *products = mix + E * R;
  float* outer = workspace.take<float>(B * pitch);
  int64_t *user_end = workspace.take<int64_t>(M + 1) + 1, *user_order = workspace.take<int64_t>(B);
  int64_t *item_end = workspace.take<int64_t>(N + 1) + 1, *item_order = workspace.take<int64_t>(2 * B);
  mixing(op, mix);
  for (int e = 0; e < E; ++e) {
    const double grad = grad_loss(a, e);
    a.grad_alignment[e] = static_cast<float>(grad);
    const float *b = mix + e * R, scale = static_cast<float>(-grad / (B ? B : 1));
    float* product = products + e * pitch;
    for (int k = 0; k < R; ++k)
      for (int l = 0; l < R; ++l) *product++ = scale * b[k] * b[l];
    for (int64_t n = R * R; n < pitch; ++n) *product++ = 0;
  }

  const bool of_user = a.grad_user || a.grad_user_profiles, of_item = a.grad_item || a.grad_item_profiles;
  const int64_t outer_blocks = (B + kBlock - 1) / kBlock;
  parallel_for(2 + outer_blocks, threads, [&](int64_t task, int) {
    if (task == 0) {
      const int64_t* items[] = {op.positives, op.negatives};
      if (of_item) group(items, 2, B, N, item_end, item_order);
    } else if (task == 1) {
      if (of_user) group(&op.users, 1, B, M, user_end, user_order);
    } else {
      const int64_t b0 = (task - 2) * kBlock, b1 = b0 + kBlock < B ? b0 + kBlock : B;
      for (int64_t b = b0; b < b1; ++b)
        for (int64_t n = 0; n < pitch; n += kLanes) {
          Vec sum{};
          for (int e = 0; e < E; ++e) sum += op.sigmoid[b * E + e] * load(products + e * pitch + n);
          store(outer + b * pitch + n, sum);
        }
    }
  });

  const auto floats = [](void* grad) { return static_cast<float*>(grad); };
  const auto tasks = [](bool wanted, int64_t rows) { return wanted ? (rows + kOwnerRows - 1) / kOwnerRows : 0; };
  const Owners users = {floats(a.grad_user), floats(a.grad_user_profiles), M, user_end, user_order, tasks(of_user, M)};
  const Owners items = {floats(a.grad_item), floats(a.grad_item_profiles), N, item_end, item_order, tasks(of_item, N)};
  with_element(op.user.base.dtype, [&](auto element) {
    with_tables(R, [&](auto tables) {
      using T = decltype(element);
      parallel_for(users.tasks + items.tasks, threads, [&](int64_t task, int) {
        const bool is_user = task < users.tasks;
        const Owners& own = is_user ? users : items;
        const int64_t first = (is_user ? task : task - users.tasks) * kOwnerRows;
        const int64_t last = first + kOwnerRows < own.rows ? first + kOwnerRows : own.rows;
        const auto rows = is_user ? owner_rows<T, tables, true> : owner_rows<T, tables, false>;
        rows(op, own, outer, pitch, first, last);
      });
    });
  });
}

}  // namespace PRF_ISA
}  // namespace prorec
