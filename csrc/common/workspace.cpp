#include "common/workspace.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace prorec {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kKeepAtMost = size_t{256} << 20;  // bytes kept in all between calls

std::mutex mutex;
std::vector<std::pair<char*, size_t>> kept;
size_t kept_bytes = 0;

}  // namespace

Workspace::Workspace(size_t bytes) {
  {
    // The smallest kept block that is large enough.
    std::lock_guard<std::mutex> lock(mutex);
    size_t best = kept.size();
    for (size_t i = 0; i < kept.size(); ++i)
      if (kept[i].second >= bytes && (best == kept.size() || kept[i].second < kept[best].second)) best = i;
    if (best < kept.size()) {
      base_ = kept[best].first;
      capacity_ = kept[best].second;
      kept_bytes -= capacity_;
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(best));
      return;
    }
  }
  capacity_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  base_ = static_cast<char*>(std::aligned_alloc(kHugePage, capacity_));
  if (base_ == nullptr && capacity_ > 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(base_, capacity_, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() {
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (kept_bytes + capacity_ <= kKeepAtMost) {
      kept.emplace_back(base_, capacity_);
      kept_bytes += capacity_;
      return;
    }
  }
  std::free(base_);
}

void release_workspaces() {
  std::lock_guard<std::mutex> lock(mutex);
  for (const auto& block : kept) std::free(block.first);
  kept.clear();
  kept_bytes = 0;
}

}  // namespace prorec
