// csrc/cuda/resident.cu itself, against the shim's <cuda_runtime.h>.
#include "../../csrc/cuda/resident.cu"
