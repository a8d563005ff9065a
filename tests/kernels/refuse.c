/* Preloaded: makes the system refuse some of the calls that change a process's mappings. malloc's own are not seen. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long calls, first, last, step = 1;

/* Refuse, of the calls from now on, those numbered from, from + every, ... below `to`. Return the calls before now. */
long refuse(long from, long to, long every) {
  first = from;
  last = to;
  step = every;
  return atomic_exchange(&calls, 0);
}

static int refused(void) {
  const long call = atomic_fetch_add(&calls, 1);
  if (call < first || call >= last || (call - first) % step != 0) return 0;
  errno = ENOMEM;
  return 1;
}

void* mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  return refused() ? MAP_FAILED : (void*)syscall(SYS_mmap, address, bytes, protection, flags, file, offset);
}

int munmap(void* address, size_t bytes) { return refused() ? -1 : (int)syscall(SYS_munmap, address, bytes); }

void* mremap(void* address, size_t bytes, size_t new_bytes, int flags, ...) {
  va_list more;
  va_start(more, flags);
  void* const target = va_arg(more, void*);
  va_end(more);
  return refused() ? MAP_FAILED : (void*)syscall(SYS_mremap, address, bytes, new_bytes, flags, target);
}
