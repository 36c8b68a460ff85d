// Scratch memory that outlives the call: a freed block is kept for the next one, because half of an eager CPU step is
// the page faults of tensors that glibc gives back and asks for again.
#pragma once
#include <cstddef>
#include <cstdint>

namespace prorec {

class Workspace {
 public:
  explicit Workspace(size_t bytes);  // throws std::bad_alloc
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // The next `count` elements, 64-byte aligned, contents undefined. The caller has summed them with bytes_for().
  template <class T>
  __attribute__((always_inline)) inline T* take(int64_t count) {
    T* out = reinterpret_cast<T*>(base_ + used_);
    used_ += bytes_for<T>(count);
    return out;
  }

  template <class T>
  __attribute__((always_inline)) static inline size_t bytes_for(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }

 private:
  char* base_;
  size_t capacity_;
  size_t used_ = 0;
};

}  // namespace prorec
