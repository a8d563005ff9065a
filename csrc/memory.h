// Memory for large outputs that is written many times and faulted in once.
//
// A fresh page costs more than writing it: the kernel clears it, a 4 KB page at a time. Blocks are therefore kept when
// their tensor dies and given to the next one that fits. Blocks in use and kept together never exceed the most that was
// ever in use at once, of those made of large pages and of the others each (docs/decisions/0007, 0012).
#pragma once

#include <cstddef>

#if defined(BATCHNORM_SANITIZE)
#include <sanitizer/asan_interface.h>
#endif

namespace batchnorm {

// Return a block of at least `bytes`, aligned to a cache line, with any content; null where the system has none.
void* acquire_block(std::size_t bytes);

// Take back a block of acquire_block. Any thread may call it.
void release_block(void* block);

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
