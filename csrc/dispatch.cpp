// Which targets this processor runs.
#include "kernels.h"

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

const Kernels* const* supported_targets() {
  static const Kernels* table[4] = {};
  if (table[0] == nullptr) {
    int n = 0;
#if defined(BATCHNORM_X86_TARGETS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
