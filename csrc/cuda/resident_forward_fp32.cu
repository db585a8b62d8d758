#include "resident_launch.cuh"

namespace townlet::cuda {

template struct ResidentLaunch<UnrollForward, false>;

}  // namespace townlet::cuda
