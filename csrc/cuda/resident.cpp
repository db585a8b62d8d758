// Which of the four sources of resident kernels has the one that is asked for.

#include "resident.h"

namespace townlet::cuda {

int resident_unroll_forward(const Resident& s, const UnrollForward& a, void* scratch, void* stream) {
  const auto run = s.bf16 ? ResidentLaunch<UnrollForward, true>::run : ResidentLaunch<UnrollForward, false>::run;
  return run(s, a, scratch, stream);
}
int resident_unroll_backward(const Resident& s, const UnrollBackward& a, void* scratch, void* stream) {
  const auto run = s.bf16 ? ResidentLaunch<UnrollBackward, true>::run : ResidentLaunch<UnrollBackward, false>::run;
  return run(s, a, scratch, stream);
}

int64_t resident_groups_at_once(const Resident& s, bool backward) {
  if (backward) {
    return s.bf16 ? ResidentLaunch<UnrollBackward, true>::groups_at_once(s)
                  : ResidentLaunch<UnrollBackward, false>::groups_at_once(s);
  }
  return s.bf16 ? ResidentLaunch<UnrollForward, true>::groups_at_once(s)
                : ResidentLaunch<UnrollForward, false>::groups_at_once(s);
}

}  // namespace townlet::cuda
