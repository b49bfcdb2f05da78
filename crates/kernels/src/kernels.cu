// All kernels, compiled as one module.

#include "norm.cu"
