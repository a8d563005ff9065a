// Memory for large outputs that is written many times and faulted in once.
//
// A fresh page costs more than writing it: the kernel clears it, a 4 KB page at a time. Blocks are therefore kept when
// their tensor dies and given to the next one that fits. Blocks in use and kept together never exceed the most that was
// in use at once lately, those made of large pages and the others each; blocks kept never exceed a limit
// (docs/decisions/0007, 0012, 0014). Every function may be called from any thread, and from the child of a fork.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#if defined(BATCHNORM_SANITIZE)
#include <sanitizer/asan_interface.h>
#endif

namespace batchnorm {

// Return a block of at least `bytes`, aligned to a cache line, with any content; from malloc if the system maps no more.
// Null if there is no memory.
void* acquire_block(std::size_t bytes);

// Take back a block of acquire_block.
void release_block(void* block);

// Return the bytes of every block and whether it is in use. Blocks from malloc are not listed.
std::vector<std::pair<std::size_t, bool>> blocks();

// Give every kept block back to the system; return their bytes.
std::size_t release_kept_blocks();

// The most bytes that are kept. With 0, new_tensor leaves the allocation to torch.
std::size_t kept_limit();
void limit_kept_blocks(std::size_t bytes);

// Memory that belongs to no tensor, although the system has given it to us: the rest of a block, a block that is kept. A
// sanitized build stops where it is touched; others know nothing of it.
#if defined(BATCHNORM_SANITIZE)
inline void forbid(const void* memory, std::size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
inline void permit(const void* memory, std::size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
#else
inline void forbid(const void*, std::size_t) {}
inline void permit(const void*, std::size_t) {}
#endif

}  // namespace batchnorm
