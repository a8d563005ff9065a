// Which targets this processor runs.
#include "kernels.h"

#if defined(BATCHNORM_X86_TARGETS)
#include <cpuid.h>
#endif

namespace batchnorm {

namespace baseline {
extern const Kernels kernels;
}
#if defined(BATCHNORM_X86_TARGETS)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

#if defined(BATCHNORM_X86_TARGETS)
namespace {

// __builtin_cpu_supports("f16c") is not known to Clang 14.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace
#endif

const Kernels* const* supported_targets() {
  static const Kernels* table[4] = {};
  if (table[0] == nullptr) {
    int n = 0;
#if defined(BATCHNORM_X86_TARGETS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512) table[n++] = &avx512::kernels;
    if (avx2) table[n++] = &avx2::kernels;
#endif
    table[n] = &baseline::kernels;
  }
  return table;
}

}  // namespace batchnorm
