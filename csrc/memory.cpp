#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <unordered_map>

namespace batchnorm {
namespace {

constexpr std::size_t kLargePage = std::size_t{2} << 20, kSmall = std::size_t{1} << 16, kCacheLine = 64;

// A grain that moved from one block to another is a mapping of its own. A process has 65,530 (vm.max_map_count), and
// malloc needs some.
constexpr std::size_t kMostMoved = 8192;

// Memory that was in use more acquisitions ago is not kept for it. A training step has hundreds.
constexpr std::size_t kWindow = 8192;

struct Block {
  char* address;
  std::size_t bytes;  // a multiple of the grain
  std::size_t moved;  // grains at the front that came from other blocks
};

// Blocks made of one size of grains. The caller holds the lock.
class Blocks {
 public:
  explicit Blocks(std::size_t grain) : grain_(grain) {}

  std::size_t kept_bytes() const { return kept_bytes_; }

  // Null if the system maps no more.
  void* acquire(std::size_t bytes) {
    const std::size_t size = (bytes + grain_ - 1) / grain_ * grain_;
    Block block = best_kept(size);
    if (block.address == nullptr) block = assemble(size);
    if (block.address == nullptr) return nullptr;
    used_.emplace(block.address, block);
    used_bytes_ += block.bytes;
    // A release cannot report that it failed, so it must not allocate.
    if (kept_.capacity() < kept_.size() + used_.size()) kept_.reserve(2 * (kept_.size() + used_.size()));
    most_now_ = std::max(most_now_, used_bytes_);
    if (++acquired_ % kWindow == 0) {
      most_before_ = most_now_;
      most_now_ = used_bytes_;
    }
    permit(block.address, bytes);
    forbid(block.address + bytes, block.bytes - bytes);
    return block.address;
  }

  // False if the block is not one of these.
  bool release(void* address) {
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

  // Give back the kept bytes beyond the limit, and those that with the blocks in use exceed the most that was in use:
  // from the ends of the oldest.
  void trim(std::size_t limit) {
    const std::size_t allowed = std::min(limit, most() - used_bytes_);
    if (kept_bytes_ <= allowed) return;
    for (Block& block : kept_) {
      if (kept_bytes_ <= allowed) break;
      const std::size_t surplus = std::min((kept_bytes_ - allowed + grain_ - 1) / grain_ * grain_, block.bytes);
      permit(block.address + block.bytes - surplus, surplus);
      // At the limit of mappings no mapping can be cut in two. The block then stays whole.
      if (munmap(block.address + block.bytes - surplus, surplus) == 0) shorten(block, surplus);
      else forbid(block.address + block.bytes - surplus, surplus);
    }
    forget_empty();
  }

  // Start anew from what is in use.
  void forget_the_most() { most_now_ = most_before_ = used_bytes_; }

  void list(std::vector<std::pair<std::size_t, bool>>& blocks) const {
    for (const auto& [address, block] : used_) blocks.emplace_back(block.bytes, true);
    for (const Block& block : kept_) blocks.emplace_back(block.bytes, false);
  }

 private:
  std::size_t most() const { return std::max(most_now_, most_before_); }

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

  // Map a new block. What would exceed the most that was in use is not taken from the system, which would clear it:
  // grains of kept blocks move there, from the ends of the oldest, one by one, because mremap crosses no border between
  // mappings. If the system refuses, the rest stays as it was mapped, and `trim` gives back as much.
  Block assemble(std::size_t size) {
    char* const begin = map(size);
    if (begin == nullptr) return {nullptr, 0, 0};
    const std::size_t all = used_bytes_ + kept_bytes_ + size;
    std::size_t wanted = all > most() ? std::min(all - most(), size) / grain_ : 0, moved = 0;
    wanted = std::min(wanted, kMostMoved - moved_);
    for (Block& from : kept_)
      for (; moved < wanted && from.bytes > 0; ++moved) {
        char* const grain = from.address + from.bytes - grain_;
        if (!move(grain, begin + moved * grain_)) {
          wanted = moved;
          break;
        }
        permit(grain, grain_);
        shorten(from, grain_);
      }
    forget_empty();
    moved_ += moved;
    return {begin, size, moved};
  }

  // mremap refuses before it changes anything (Linux, mm/mremap.c).
  bool move(char* from, char* to) const {
#ifdef MREMAP_FIXED
    return mremap(from, grain_, grain_, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
#else
    return from == to;
#endif
  }

  // Take note that the end of a kept block is gone.
  void shorten(Block& block, std::size_t bytes) {
    block.bytes -= bytes;
    kept_bytes_ -= bytes;
    const std::size_t moved = std::min(block.moved, block.bytes / grain_);
    moved_ -= block.moved - moved;
    block.moved = moved;
  }

  void forget_empty() {
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [](const Block& block) { return block.bytes == 0; }), kept_.end());
  }

  static char* fresh(std::size_t size) {
    void* begin = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return begin == MAP_FAILED ? nullptr : static_cast<char*>(begin);
  }

  // Large pages begin at multiples of their size. If the margins cannot be unmapped, addresses are lost but no memory.
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
  std::vector<Block> kept_;  // oldest first
  std::unordered_map<void*, Block> used_;
  std::size_t kept_bytes_ = 0, used_bytes_ = 0, moved_ = 0;
  // The most bytes that were in use at once: in this window of acquisitions, and in the one before.
  std::size_t most_now_ = 0, most_before_ = 0, acquired_ = 0;
};

// An eighth of what this process may have: the machine's memory, or its control group's.
std::size_t default_limit() {
  auto bytes = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"})
    if (std::FILE* const file = std::fopen(path, "r")) {
      std::size_t group = 0;
      if (std::fscanf(file, "%zu", &group) == 1) bytes = std::min(bytes, group);
      std::fclose(file);
    }
  return bytes / 8;
}

struct Memory {
  std::mutex mutex;
  Blocks small{kSmall}, large{kLargePage};
  std::atomic<std::size_t> limit{default_limit()};

  Blocks& of(std::size_t bytes) { return bytes < kLargePage ? small : large; }

  void trim(std::size_t most) {
    small.trim(most);
    large.trim(most - std::min(most, small.kept_bytes()));
  }

  std::size_t release_kept() {
    const std::size_t before = small.kept_bytes() + large.kept_bytes();
    trim(0);
    return before - small.kept_bytes() - large.kept_bytes();
  }
};

// Tensors may outlive static destruction.
Memory& memory = *new Memory;

// A thread that holds the lock while another forks does not exist in the child, where nothing would unlock it.
[[maybe_unused]] const int registered = pthread_atfork([] { memory.mutex.lock(); }, [] { memory.mutex.unlock(); },
                                                       [] { memory.mutex.unlock(); });

}  // namespace

void* acquire_block(std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(memory.mutex);
  void* block = memory.of(bytes).acquire(bytes);
  if (block == nullptr && memory.release_kept() > 0) block = memory.of(bytes).acquire(bytes);
  memory.trim(memory.limit);
  return block != nullptr ? block : std::aligned_alloc(kCacheLine, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
}

void release_block(void* block) {
  const std::lock_guard<std::mutex> lock(memory.mutex);
  if (memory.large.release(block) || memory.small.release(block)) memory.trim(memory.limit);
  else std::free(block);
}

std::vector<std::pair<std::size_t, bool>> blocks() {
  const std::lock_guard<std::mutex> lock(memory.mutex);
  std::vector<std::pair<std::size_t, bool>> found;
  memory.small.list(found);
  memory.large.list(found);
  return found;
}

std::size_t release_kept_blocks() {
  const std::lock_guard<std::mutex> lock(memory.mutex);
  const std::size_t released = memory.release_kept();
  memory.small.forget_the_most();
  memory.large.forget_the_most();
  return released;
}

std::size_t kept_limit() { return memory.limit; }

void limit_kept_blocks(std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(memory.mutex);
  memory.limit = bytes;
  memory.trim(bytes);
}

}  // namespace batchnorm
