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
  char* address;
  std::size_t bytes, grain;  // bytes are a multiple of the grain
};

class Blocks {
 public:
  void* acquire(std::size_t bytes) {
    const std::size_t grain = bytes < kLargePage ? kGrain : kLargePage;
    const std::size_t size = (bytes + grain - 1) / grain * grain;
    const std::lock_guard<std::mutex> lock(mutex_);
    Block block = best_kept(size);
    if (block.address == nullptr) block = assemble(size, grain);
    if (block.address == nullptr) return nullptr;
    used_.emplace(block.address, block);
    used_bytes_ += block.bytes;
    most_used_ = std::max(most_used_, used_bytes_);
    trim();
    permit(block.address, bytes);
    forbid(block.address + bytes, block.bytes - bytes);
    return block.address;
  }

  void release(void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = used_.find(address);
    const Block block = it->second;
    forbid(block.address, block.bytes);
    used_.erase(it);
    used_bytes_ -= block.bytes;
    kept_.push_back(block);
    kept_bytes_ += block.bytes;
  }

 private:
  // Take the smallest kept block that fits without wasting an eighth; of equal ones the latest, which may still be in
  // cache.
  Block best_kept(std::size_t size) {
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it)
      if (it->bytes >= size && it->bytes <= size + size / 8 && (best == kept_.end() || it->bytes <= best->bytes)) best = it;
    if (best == kept_.end()) return {nullptr, 0, 0};
    const Block block = *best;
    kept_.erase(best);
    kept_bytes_ -= block.bytes;
    return block;
  }

  // Map a new block. What would exceed the most that was ever in use is not asked of the system, which would clear it:
  // pages of kept blocks move there, from the ends of the oldest.
  Block assemble(std::size_t size, std::size_t grain) {
    char* const begin = map(size, grain);
    if (begin == nullptr) return {nullptr, 0, 0};
    const std::size_t all = used_bytes_ + kept_bytes_ + size;
    std::size_t surplus = all > most_used_ ? std::min(all - most_used_, size) : 0;
    char* next = begin;
    for (Block& from : kept_) {
      if (from.grain != grain) continue;
      for (; surplus >= grain && from.bytes > 0; next += grain, surplus -= grain) {
        if (!move_page(from.address + from.bytes - grain, next, grain)) {
          munmap(begin, size);
          return {nullptr, 0, 0};
        }
        permit(from.address + from.bytes - grain, grain);
        from.bytes -= grain;
        kept_bytes_ -= grain;
      }
    }
    forget_empty();
    return {begin, size, grain};
  }

  // One grain at a time: a block that was assembled itself consists of several mappings, and mremap crosses no border.
  static bool move_page(char* from, char* to, std::size_t grain) {
#ifdef MREMAP_FIXED
    if (mremap(from, grain, grain, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED) return true;
#endif
    munmap(from, grain);
    return fresh(grain, to) != nullptr;  // whatever was there is gone
  }

  // Give back what is too much, from the ends of the oldest blocks.
  void trim() {
    for (Block& block : kept_) {
      const std::size_t all = used_bytes_ + kept_bytes_;
      if (all <= most_used_) break;
      const std::size_t grains = (all - most_used_ + block.grain - 1) / block.grain;
      const std::size_t surplus = std::min(grains * block.grain, block.bytes);
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

  // From the size of a large page on, aligned to one, so that all of it can be made of large pages.
  static char* map(std::size_t size, std::size_t grain) {
    if (grain < kLargePage) return fresh(size);
    char* const raw = fresh(size + kLargePage);
    if (raw == nullptr) return nullptr;
    const std::size_t offset = reinterpret_cast<std::size_t>(raw) % kLargePage;
    const std::size_t before = offset == 0 ? 0 : kLargePage - offset;
    if (before > 0) munmap(raw, before);
    munmap(raw + before + size, kLargePage - before);
    madvise(raw + before, size, MADV_HUGEPAGE);
    return raw + before;
  }

  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
  std::unordered_map<void*, Block> used_;
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
