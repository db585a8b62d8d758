// csrc/cuda/step.cu itself, against the shim's <cuda_runtime.h>.
#include "../../csrc/cuda/step.cu"
