#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace batchnorm {
namespace {

constexpr std::size_t kLargePage = std::size_t{2} << 20, kGrain = std::size_t{1} << 16;

struct Block {
  void* address;
  std::size_t bytes;
};

class Blocks {
 public:
  void* acquire(std::size_t bytes) {
    const std::size_t grain = bytes < kLargePage ? kGrain : kLargePage;
    const std::size_t size = (bytes + grain - 1) / grain * grain;
    const std::lock_guard<std::mutex> lock(mutex_);
    // The smallest that fits without wasting an eighth; of equal ones the latest, which may still be in cache.
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it)
      if (it->bytes >= size && it->bytes <= size + size / 8 && (best == kept_.end() || it->bytes <= best->bytes)) best = it;
    Block block{};
    if (best != kept_.end()) {
      block = *best;
      kept_.erase(best);
      kept_bytes_ -= block.bytes;
    } else {
      block = map(size);
      if (block.address == nullptr) return nullptr;
    }
    used_.emplace(block.address, block.bytes);
    used_bytes_ += block.bytes;
    most_used_ = std::max(most_used_, used_bytes_);
    permit(block.address, bytes);
    forbid(static_cast<char*>(block.address) + bytes, block.bytes - bytes);
    while (!kept_.empty() && used_bytes_ + kept_bytes_ > most_used_) {  // the oldest goes first
      permit(kept_.front().address, kept_.front().bytes);
      munmap(kept_.front().address, kept_.front().bytes);
      kept_bytes_ -= kept_.front().bytes;
      kept_.erase(kept_.begin());
    }
    return block.address;
  }

  void release(void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = used_.find(address);
    const Block block{address, it->second};
    forbid(block.address, block.bytes);
    used_.erase(it);
    used_bytes_ -= block.bytes;
    kept_.push_back(block);
    kept_bytes_ += block.bytes;
  }

 private:
  static void* fresh(std::size_t size) {
    void* begin = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return begin == MAP_FAILED ? nullptr : begin;
  }

  // From the size of a large page on, aligned to one, so that all of it can be made of large pages.
  static Block map(std::size_t size) {
    if (size < kLargePage) {
      void* begin = fresh(size);
      return {begin, begin == nullptr ? 0 : size};
    }
    void* raw = fresh(size + kLargePage);
    if (raw == nullptr) return {nullptr, 0};
    auto* begin = static_cast<char*>(raw);
    const std::size_t offset = reinterpret_cast<std::size_t>(begin) % kLargePage;
    const std::size_t before = offset == 0 ? 0 : kLargePage - offset;
    if (before > 0) munmap(begin, before);
    munmap(begin + before + size, kLargePage - before);
    madvise(begin + before, size, MADV_HUGEPAGE);
    return {begin + before, size};
  }

  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
  std::unordered_map<void*, std::size_t> used_;
  std::size_t kept_bytes_ = 0, used_bytes_ = 0, most_used_ = 0;
};

Blocks& blocks() {
  static auto* all = new Blocks;  // tensors may outlive static destruction
  return *all;
}

}  // namespace

void* acquire_block(std::size_t bytes) { return blocks().acquire(bytes); }

void release_block(void* block) { blocks().release(block); }

}  // namespace batchnorm
