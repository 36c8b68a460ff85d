#include "common/workspace.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <tuple>
#include <utility>
#include <vector>

namespace prorec {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kKeepAtMost = size_t{256} << 20;  // bytes kept in all between calls
#ifdef __SANITIZE_ADDRESS__
constexpr bool kReuse = false;
constexpr size_t kUnit = 64;
#else
constexpr bool kReuse = true;
constexpr size_t kUnit = kHugePage;
#endif

std::mutex mutex;
std::vector<std::pair<char*, size_t>> kept;
size_t kept_bytes = 0;

bool smaller(const std::pair<char*, size_t>& a, const std::pair<char*, size_t>& b) { return a.second < b.second; }

}  // namespace

Workspace::Workspace(size_t bytes) {
  if (kReuse) {
    std::lock_guard<std::mutex> lock(mutex);
    // Kept blocks are sorted by size: the smallest that is large enough serves.
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const auto& block) { return block.second >= bytes; });
    if (found != kept.end()) {
      std::tie(base_, capacity_) = *found;
      kept_bytes -= capacity_;
      kept.erase(found);
      return;
    }
    if (!kept.empty()) {  // the largest is too small: the new block takes its place
      std::free(kept.back().first);
      kept_bytes -= kept.back().second;
      kept.pop_back();
    }
  }
  capacity_ = (bytes + kUnit - 1) / kUnit * kUnit;
  base_ = static_cast<char*>(std::aligned_alloc(kUnit, capacity_));
  if (base_ == nullptr && capacity_ > 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(base_, capacity_, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() {
  if (kReuse) {
    std::lock_guard<std::mutex> lock(mutex);
    if (kept_bytes + capacity_ <= kKeepAtMost) {
      const std::pair<char*, size_t> block(base_, capacity_);
      kept.insert(std::upper_bound(kept.begin(), kept.end(), block, smaller), block);
      kept_bytes += capacity_;
      return;
    }
  }
  std::free(base_);
}

}  // namespace prorec
