#include "resident_launch.cuh"

namespace townlet::cuda {

template struct ResidentLaunch<UnrollBackward, true>;

}  // namespace townlet::cuda
