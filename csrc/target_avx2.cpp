#define BATCHNORM_TARGET avx2
#define BATCHNORM_WIDTH 32
#include "target-inl.h"
