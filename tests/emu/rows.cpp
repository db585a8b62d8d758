// csrc/cuda/rows.cu itself, against the shim's <cuda_runtime.h>.
#include "../../csrc/cuda/rows.cu"
