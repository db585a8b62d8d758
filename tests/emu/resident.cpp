// csrc/cuda/resident_*.cu themselves, against the shim's <cuda_runtime.h>.
#include "../../csrc/cuda/resident_backward_bf16.cu"
#include "../../csrc/cuda/resident_backward_fp32.cu"
#include "../../csrc/cuda/resident_forward_bf16.cu"
#include "../../csrc/cuda/resident_forward_fp32.cu"
