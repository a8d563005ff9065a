// Memory for large outputs that is written many times and faulted in once.
//
// A fresh page costs more than writing it: the kernel clears it, a 4 KB page at a time. Blocks are therefore kept when
// their tensor dies and given to the next one that fits. Blocks in use and kept together never exceed the most that was
// ever in use at once (docs/decisions/0007).
#pragma once

#include <cstddef>

namespace batchnorm {

// Return a block of at least `bytes`, aligned to a cache line, with any content; null where the system has none.
void* acquire_block(std::size_t bytes);

// Take back a block of acquire_block. Any thread may call it.
void release_block(void* block);

}  // namespace batchnorm
