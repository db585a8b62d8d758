// csrc/cuda/td.cu itself, against the shim's <cuda_runtime.h>.
#include "../../csrc/cuda/td.cu"
