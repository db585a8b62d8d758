#pragma once
// Launches of the resident kernels (resident.cuh), on the current device.

#include "resident_plan.h"
#include "unroll.h"

namespace townlet::cuda {

// `scratch`: forward_scratch/backward_scratch(groups) bytes of device memory, any contents.  cudaError_t as int
int resident_unroll_forward(const Resident&, const UnrollForward&, void* scratch, void* stream);
int resident_unroll_backward(const Resident&, const UnrollBackward&, void* scratch, void* stream);

// How many groups of this form the device can run at the same time, as the driver says; 0: it cannot launch one.
int64_t resident_groups_at_once(const Resident&, bool backward);

// One direction and one element type; the sources resident_*.cu bring one each.
template <class Problem, bool bf16>
struct ResidentLaunch {
  static int run(const Resident&, const Problem&, void* scratch, void* stream);
  static int64_t groups_at_once(const Resident&);
};

}  // namespace townlet::cuda
