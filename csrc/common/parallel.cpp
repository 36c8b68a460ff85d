#include "common/parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <thread>
#include <vector>

namespace prorec {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// torch loads its OpenMP runtime with global symbols. GOMP_parallel is the entry point that compilers emit calls to;
// linking a second runtime would put two pools of spinning threads on the same cores.
GompParallel find_gomp_parallel() {
  static const auto entry = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return entry;
}

struct Region {
  TaskFn body;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> slots{0};
};

void work(void* data) {
  auto& region = *static_cast<Region*>(data);
  const int slot = region.slots.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    const int64_t task = region.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= region.tasks) return;
    region.body(region.context, task, slot);
  }
}

}  // namespace

void parallel_for_tasks(int64_t tasks, int threads, TaskFn body, void* context) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  Region region;
  region.body = body;
  region.context = context;
  region.tasks = tasks;
  if (const GompParallel gomp_parallel = find_gomp_parallel()) {
    gomp_parallel(work, &region, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> workers;
  workers.reserve(static_cast<size_t>(threads) - 1);
  for (int i = 1; i < threads; ++i) workers.emplace_back(work, &region);
  work(&region);
  for (auto& worker : workers) worker.join();
}

const char* parallel_backend() { return find_gomp_parallel() ? "gomp" : "std"; }

}  // namespace prorec
