#define BATCHNORM_TARGET avx512
#define BATCHNORM_WIDTH 64
#include "target-inl.h"
