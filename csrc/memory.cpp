#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace batchnorm {
namespace {

constexpr std::size_t kLargePage = std::size_t{2} << 20, kSmall = std::size_t{1} << 16;

struct Block {
  char* address;
  std::size_t bytes;  // a multiple of the grain
};

// Blocks of one kind of pages.
class Blocks {
 public:
  explicit Blocks(std::size_t grain) : grain_(grain) {}

  void* acquire(std::size_t bytes) {
    const std::size_t size = (bytes + grain_ - 1) / grain_ * grain_;
    const std::lock_guard<std::mutex> lock(mutex_);
    Block block = best_kept(size);
    if (block.address == nullptr) block = assemble(size);
    if (block.address == nullptr) return nullptr;
    used_.emplace(block.address, block);
    used_bytes_ += block.bytes;
    most_used_ = std::max(most_used_, used_bytes_);
    trim();
    permit(block.address, bytes);
    forbid(block.address + bytes, block.bytes - bytes);
    return block.address;
  }

  // False where the block is not of this kind.
  bool release(void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = used_.find(address);
    if (it == used_.end()) return false;
    const Block block = it->second;
    forbid(block.address, block.bytes);
    used_.erase(it);
    used_bytes_ -= block.bytes;
    kept_.push_back(block);
    kept_bytes_ += block.bytes;
    return true;
  }

 private:
  // Take the smallest kept block that fits without wasting an eighth; of equal ones the latest, which may still be in
  // cache.
  Block best_kept(std::size_t size) {
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it)
      if (it->bytes >= size && it->bytes <= size + size / 8 && (best == kept_.end() || it->bytes <= best->bytes)) best = it;
    if (best == kept_.end()) return {nullptr, 0};
    const Block block = *best;
    kept_.erase(best);
    kept_bytes_ -= block.bytes;
    return block;
  }

  // Map a new block. What would exceed the most that was ever in use is not asked of the system, which would clear it:
  // pages of kept blocks move there, from the ends of the oldest.
  Block assemble(std::size_t size) {
    char* const begin = map(size);
    if (begin == nullptr) return {nullptr, 0};
    const std::size_t all = used_bytes_ + kept_bytes_ + size;
    std::size_t surplus = all > most_used_ ? std::min(all - most_used_, size) : 0;
    char* next = begin;
    for (Block& from : kept_) {
      for (; surplus >= grain_ && from.bytes > 0; next += grain_, surplus -= grain_) {
        if (!move_page(from.address + from.bytes - grain_, next)) {
          munmap(begin, size);
          return {nullptr, 0};
        }
        permit(from.address + from.bytes - grain_, grain_);
        from.bytes -= grain_;
        kept_bytes_ -= grain_;
      }
    }
    forget_empty();
    return {begin, size};
  }

  // One grain at a time: a block that was assembled itself consists of several mappings, and mremap crosses no border.
  bool move_page(char* from, char* to) const {
#ifdef MREMAP_FIXED
    if (mremap(from, grain_, grain_, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED) return true;
#endif
    munmap(from, grain_);
    return fresh(grain_, to) != nullptr;  // whatever was there is gone
  }

  // Give back what is too much, from the ends of the oldest blocks.
  void trim() {
    for (Block& block : kept_) {
      const std::size_t all = used_bytes_ + kept_bytes_;
      if (all <= most_used_) break;
      const std::size_t surplus = std::min(all - most_used_, block.bytes);
      block.bytes -= surplus;
      kept_bytes_ -= surplus;
      permit(block.address + block.bytes, surplus);
      munmap(block.address + block.bytes, surplus);
    }
    forget_empty();
  }

  void forget_empty() {
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [](const Block& block) { return block.bytes == 0; }), kept_.end());
  }

  static char* fresh(std::size_t size, char* where = nullptr) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (where == nullptr ? 0 : MAP_FIXED);
    void* begin = mmap(where, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    return begin == MAP_FAILED ? nullptr : static_cast<char*>(begin);
  }

  // Large pages begin at multiples of their size.
  char* map(std::size_t size) const {
    if (grain_ < kLargePage) return fresh(size);
    char* const raw = fresh(size + kLargePage);
    if (raw == nullptr) return nullptr;
    const std::size_t offset = reinterpret_cast<std::size_t>(raw) % kLargePage;
    const std::size_t before = offset == 0 ? 0 : kLargePage - offset;
    if (before > 0) munmap(raw, before);
    munmap(raw + before + size, kLargePage - before);
    madvise(raw + before, size, MADV_HUGEPAGE);
    return raw + before;
  }

  const std::size_t grain_;
  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
  std::unordered_map<void*, Block> used_;
  std::size_t kept_bytes_ = 0, used_bytes_ = 0, most_used_ = 0;
};

// Tensors may outlive static destruction.
Blocks& small_blocks() {
  static auto* blocks = new Blocks(kSmall);
  return *blocks;
}
Blocks& large_blocks() {
  static auto* blocks = new Blocks(kLargePage);
  return *blocks;
}

}  // namespace

void* acquire_block(std::size_t bytes) {
  return (bytes < kLargePage ? small_blocks() : large_blocks()).acquire(bytes);
}

void release_block(void* block) {
  if (!large_blocks().release(block)) small_blocks().release(block);
}

}  // namespace batchnorm
