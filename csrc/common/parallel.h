// Work sharing on the OpenMP runtime that torch has already loaded, so that the process has one thread pool.
#pragma once
#include <cstdint>

namespace prorec {

using TaskFn = void (*)(void* context, int64_t task, int slot);

// Calls body(context, task, slot) for every task in [0, tasks), on at most `threads` threads; slot < threads names the
// calling worker. One task or one thread runs serially on the caller.
void parallel_for_tasks(int64_t tasks, int threads, TaskFn body, void* context);

// "gomp" when torch's runtime was found, "std" when threads are started per call.
const char* parallel_backend();

template <class Body>
__attribute__((always_inline)) inline void parallel_for(int64_t tasks, int threads, const Body& body) {
  parallel_for_tasks(
      tasks, threads,
      [](void* context, int64_t task, int slot) { (*static_cast<const Body*>(context))(task, slot); },
      const_cast<Body*>(&body));
}

}  // namespace prorec
