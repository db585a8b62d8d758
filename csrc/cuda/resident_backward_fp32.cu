#include "resident_launch.cuh"

namespace townlet::cuda {

template struct ResidentLaunch<UnrollBackward, false>;

}  // namespace townlet::cuda
