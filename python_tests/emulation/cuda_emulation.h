// A grid of CUDA threads on one host thread, for testing kernels where there is no device. Blocks run one after another;
// a block's threads are fibers that run until they meet a barrier or a warp-wide exchange. Blocks and fibers take their
// turns in an order that changes, and warps are held back by chance, so that code which lacks a barrier gives a wrong answer. A
// barrier that some threads never reach, an exchange with a lane that has left and a trap are errors.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static  // blocks run one after another

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulation {

constexpr size_t kStack = 64 << 10;
constexpr int kWarpSize = 32;

struct Fiber {
  enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };
  State state;
  dim3 index;
  unsigned mask;  // of the warp barrier it waits at
  bool started;
  jmp_buf where;
  std::vector<char> stack;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> exchanged;  // one word a thread
  std::vector<unsigned char> shared;
  std::function<void()> body;
  Fiber* current = nullptr;
  int number = 0;  // of the current fiber
  jmp_buf scheduler;
  std::string error;
};

inline Block& block() {
  static Block one;
  return one;
}
inline dim3& grid_dim() {
  static dim3 d;
  return d;
}
inline dim3& block_dim() {
  static dim3 d;
  return d;
}
inline dim3& block_index() {
  static dim3 d;
  return d;
}

inline void give_way(Fiber::State state, unsigned mask = 0) {
  Fiber& self = *block().current;
  self.state = state;
  self.mask = mask;
  if (_setjmp(self.where) == 0) _longjmp(block().scheduler, 1);
}

inline void fail(const std::string& what) {
  if (block().error.empty()) block().error = what;
  give_way(Fiber::kDone);
  std::abort();  // a fiber that is done is not resumed
}

inline void fiber_main() {
  block().body();
  give_way(Fiber::kDone);
}

inline void resume(int number) {
  Block& b = block();
  Fiber& fiber = b.fibers[number];
  b.current = &fiber;
  b.number = number;
  if (_setjmp(b.scheduler)) return;
  if (fiber.started) _longjmp(fiber.where, 1);
  fiber.started = true;
  static ucontext_t context;
  getcontext(&context);
  fiber.stack.resize(kStack);
  context.uc_stack.ss_sp = fiber.stack.data();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
}

// Makes ready the fibers whose barrier is complete; false where none is.
inline bool release() {
  Block& b = block();
  const int threads = static_cast<int>(b.fibers.size());
  bool released = false, all_at_barrier = true;
  for (const Fiber& fiber : b.fibers)
    all_at_barrier &= fiber.state == Fiber::kAtBlockBarrier || fiber.state == Fiber::kDone;
  for (int first = 0; first < threads; first += kWarpSize) {
    for (int lane = 0; lane < kWarpSize && first + lane < threads; ++lane) {
      const Fiber& waiting = b.fibers[first + lane];
      if (waiting.state != Fiber::kAtWarpBarrier) continue;
      bool complete = true;
      const unsigned mask = waiting.mask;
      for (int other = 0; other < kWarpSize; ++other) {
        if (!(mask >> other & 1)) continue;
        if (first + other >= threads || b.fibers[first + other].state == Fiber::kDone)
          b.error = "a warp-wide operation names a lane that has left";
        else
          complete &= b.fibers[first + other].state == Fiber::kAtWarpBarrier && b.fibers[first + other].mask == mask;
      }
      if (!b.error.empty()) return false;
      for (int other = 0; complete && other < kWarpSize; ++other)
        if (mask >> other & 1) b.fibers[first + other].state = Fiber::kReady, released = true;
    }
  }
  if (!released && all_at_barrier)
    for (Fiber& fiber : b.fibers)
      if (fiber.state == Fiber::kAtBlockBarrier) fiber.state = Fiber::kReady, released = true;
  return released;
}

inline void run_block(uint32_t& random) {
  Block& b = block();
  const int threads = static_cast<int>(b.fibers.size());
  std::memset(b.shared.data(), 0xff, b.shared.size());  // NaN to whoever reads before writing
  for (int t = 0; t < threads; ++t) {
    b.fibers[t].state = Fiber::kReady;
    b.fibers[t].started = false;
    b.fibers[t].index = dim3(t % block_dim().x, t / block_dim().x % block_dim().y, t / block_dim().x / block_dim().y);
  }
  bool held_back;
  do {
    random = random * 1664525u + 1013904223u;
    const int start = static_cast<int>(random >> 8) % threads, step = random >> 31 ? 1 : threads - 1;
    const uint32_t held_warps = random * 2654435769u & (random ^ random << 13) * 2246822519u;  // about one in four
    held_back = false;
    for (int n = 0, t = start; n < threads; ++n, t = (t + step) % threads) {
      if (b.fibers[t].state != Fiber::kReady) continue;
      if (held_warps >> (t / kWarpSize % 32) & 1)
        held_back = true;
      else
        resume(t);
    }
  } while (b.error.empty() && (release() || held_back));
  for (const Fiber& fiber : b.fibers)
    if (fiber.state != Fiber::kDone && b.error.empty()) b.error = "threads wait at a barrier that others never reach";
}

template <class Kernel, class... Arguments>
void run_grid(const char* name, Kernel kernel, dim3 grid, dim3 threads, size_t shared_bytes,
              const Arguments&... arguments) {
  static std::mutex one_grid;
  const std::lock_guard<std::mutex> lock(one_grid);
  Block& b = block();
  if (threads.x * threads.y * threads.z > 1024 || grid.y > 65535 || grid.z > 65535 || shared_bytes > 99 * 1024)
    throw std::runtime_error(std::string(name) + ": the launch exceeds what a device takes");
  b.fibers.resize(threads.x * threads.y * threads.z);
  b.exchanged.assign(b.fibers.size(), 0);
  b.shared.resize(shared_bytes + 16);
  b.body = [&] { kernel(arguments...); };
  b.error.clear();
  grid_dim() = grid;
  block_dim() = threads;
  static uint32_t random = 1;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t step = random >> 8 | 1;  // without a common factor, so that every block has its turn once
  while (std::gcd(step, blocks) > 1) ++step;
  for (uint64_t n = 0; n < blocks && b.error.empty(); ++n) {
    const uint64_t at = ((random >> 4) + n * step) % blocks;
    block_index() = dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y);
    uint32_t turns = random + static_cast<uint32_t>(n);
    run_block(turns);
  }
  random = random * 1664525u + 1013904223u;
  if (!b.error.empty()) throw std::runtime_error(std::string(name) + ": " + b.error);
}

// The value that lane `source` of this warp hands over; all lanes of `mask` call it.
template <class T>
T exchange(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "one word a thread");
  Block& b = block();
  const int number = b.number, lane = number % kWarpSize;
  if (!(mask >> lane & 1)) fail("a lane calls a warp-wide operation whose mask leaves it out");
  std::memcpy(&b.exchanged[number], &value, sizeof(T));
  give_way(Fiber::kAtWarpBarrier, mask);
  T result = value;
  if (source >= 0 && source < kWarpSize) {
    if (!(mask >> source & 1)) fail("a lane reads from a lane outside the mask");
    std::memcpy(&result, &b.exchanged[number - lane + source], sizeof(T));
  }
  give_way(Fiber::kAtWarpBarrier, mask);
  return result;
}

}  // namespace emulation

#define threadIdx (emulation::block().current->index)
#define blockIdx (emulation::block_index())
#define blockDim (emulation::block_dim())
#define gridDim (emulation::grid_dim())

inline void __syncthreads() { emulation::give_way(emulation::Fiber::kAtBlockBarrier); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::give_way(emulation::Fiber::kAtWarpBarrier, mask); }
inline void __threadfence() {}
[[noreturn]] inline void __trap() {
  emulation::fail("trap");
  std::abort();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emulation::block().number % 32;
  return emulation::exchange(mask, value, lane / width * width + source % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int = 32) {
  return emulation::exchange(mask, value, emulation::block().number % 32 ^ flip);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulation::block().number % 32, source = lane + static_cast<int>(delta);
  return emulation::exchange(mask, value, source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulation::block().number % 32, source = lane - static_cast<int>(delta);
  return emulation::exchange(mask, value, source >= lane / width * width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  emulation::Block& b = emulation::block();
  const int number = b.number, lane = number % 32;
  b.exchanged[number] = predicate != 0;
  emulation::give_way(emulation::Fiber::kAtWarpBarrier, mask);
  unsigned votes = 0;
  for (int other = 0; other < 32; ++other)
    if (mask >> other & 1) votes |= static_cast<unsigned>(b.exchanged[number - lane + other]) << other;
  emulation::give_way(emulation::Fiber::kAtWarpBarrier, mask);
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __syncthreads_or(int predicate) {
  static int any;
  __syncthreads();
  any = 0;
  __syncthreads();
  any |= predicate != 0;
  __syncthreads();
  return any;
}
inline int __syncthreads_count(int predicate) {
  static int count;
  __syncthreads();
  count = 0;
  __syncthreads();
  count += predicate != 0;
  __syncthreads();
  return count;
}

template <class T, class U>
T atomicAdd(T* to, U value) {
  const T old = *to;
  *to = static_cast<T>(old + static_cast<T>(value));
  return old;
}
template <class T, class U>
T atomicMin(T* to, U value) {
  const T old = *to;
  if (static_cast<T>(value) < old) *to = static_cast<T>(value);
  return old;
}
template <class T, class U>
T atomicMax(T* to, U value) {
  const T old = *to;
  if (static_cast<T>(value) > old) *to = static_cast<T>(value);
  return old;
}
template <class T, class U>
T atomicOr(T* to, U value) {
  const T old = *to;
  *to = old | static_cast<T>(value);
  return old;
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) {
  const int sign = x.bits >> 15, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return sign ? -magnitude : magnitude;
}
inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (x != x) return {0x7fff};
  if (magnitude >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(magnitude, &exponent);
  const int unit = exponent - 11 < -24 ? -24 : exponent - 11;  // the power of two of the last place
  const int places = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
  if (magnitude == 0.f || places == 0) return {sign};
  // 2^10 places or more is a normal number, whose exponent field counts from unit -24; a carry moves on by itself.
  return {static_cast<uint16_t>(sign | (((unit + 24) << 10) + places))};
}

namespace prorec {
namespace cuda {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*,
            const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  emulation::run_grid(name, kernel, grid, block, shared_bytes, arguments...);
}

template <class T>
T* dynamic_shared() {
  auto at = reinterpret_cast<uintptr_t>(emulation::block().shared.data());
  return reinterpret_cast<T*>((at + 15) / 16 * 16);
}

}  // namespace cuda
}  // namespace prorec
