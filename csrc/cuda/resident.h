#pragma once
// Launches of the resident kernels (resident.cu).

#include "resident_plan.h"
#include "unroll.h"

namespace townlet::cuda {

// `scratch`: forward_scratch/backward_scratch(groups) bytes of device memory, any contents.  cudaError_t as int
int resident_unroll_forward(const Resident&, const UnrollForward&, void* scratch, void* stream);
int resident_unroll_backward(const Resident&, const UnrollBackward&, void* scratch, void* stream);

}  // namespace townlet::cuda
