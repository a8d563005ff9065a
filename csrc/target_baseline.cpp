#define BATCHNORM_TARGET baseline
#define BATCHNORM_WIDTH 16
#include "target-inl.h"
