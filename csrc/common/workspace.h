// Scratch memory that outlives the call: a freed block is kept for the next one, because half of an eager CPU step is
// the page faults of tensors that glibc gives back and asks for again.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace prorec {

// Under AddressSanitizer every block is new and as large as asked for, with a gap that must not be touched behind each
// array in it: an access beyond one is seen there and not in the next one's numbers.
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
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(out + count, static_cast<size_t>(base_ + used_ - reinterpret_cast<char*>(out + count)));
#endif
    return out;
  }

  template <class T>
  __attribute__((always_inline)) static inline size_t bytes_for(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64 + kGap;
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kGap = 64;
#else
  static constexpr size_t kGap = 0;
#endif
  char* base_;
  size_t capacity_;
  size_t used_ = 0;
};

}  // namespace prorec
