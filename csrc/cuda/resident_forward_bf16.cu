#include "resident_launch.cuh"

namespace townlet::cuda {

template struct ResidentLaunch<UnrollForward, true>;

}  // namespace townlet::cuda
