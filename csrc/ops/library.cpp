// The library of operators, torch.ops.townlet.  Each file of this folder holds one operator and its companions: their
// schemas, their checks, and their calls of the CPU kernels (cpu/).
//
//   td_unroll.cpp   td_unroll, td_unroll_into, td_unroll_scratch: loss and gradients of recurrent Q-networks
//   lstm.cpp        lstm_unroll, lstm_unroll_backward, lstm_saved_size, lstm_step, unroll_plan
//   pack.cpp        pack, pack_size: a network's weights in the kernels' layout
//   act.cpp         act, pack_encoder, encoder_size: one acting step
//   adam.cpp        adam_step
//   replay.cpp      replay_write, replay_windows
//   spatial.cpp     spatial_encode, spatial_encode_backward: the encoder over the Town's window
//   library.cpp     lanes, isa, isa_levels, last_scratch: which CPU kernels run; last_item_first, item_order: for tests
//
// Python checks shapes with messages for people.  The operators check them again only so that no call can read out of
// bounds.  The operators share tensors.h and net.h, also with the operators for CUDA tensors (cuda/ops.inl).  In the
// schemas P are members, B sequences, S transitions, T steps, E rows, D features, H LSTM units, F units of the head's
// hidden layer, and A actions.

#include <mutex>

#include "tensors.h"

STABLE_TORCH_LIBRARY(townlet, m) {
  // vector lanes of the kernels in use: 16 avx512, 8 avx2, 4 portable
  m.def("lanes() -> int");
  // the instruction set in use, and all that were built and that this CPU runs: 1 portable, 2 avx2, 4 avx512, 8
  // avx512_bf16
  m.def("isa() -> int");
  m.def("isa_levels() -> int");
  // bytes that the last call on any thread took from the scratch pool
  m.def("last_scratch() -> int");
  // for tests: whether every operator runs its parallel items one by one from the last to the first, from now on
  m.def("last_item_first(bool on) -> ()");
  // for tests: the numbers of n parallel items in the order in which they ran
  m.def("item_order(int n) -> str");
}

namespace townlet {
namespace {

int64_t lanes() { return kernels().lanes; }
int64_t isa() { return kernels().bit; }
int64_t last_scratch() { return last_arena_bytes(); }
int64_t isa_levels() { return runnable(); }
void set_last_item_first(bool on) { last_item_first = on; }
std::string item_order(int64_t n) {
  struct Ran {
    std::mutex mutex;
    std::string items;
  } ran;
  kParallel.run(n, &ran, [](void* context, int64_t i) {
    Ran& all = *static_cast<Ran*>(context);
    const std::lock_guard lock(all.mutex);
    if (!all.items.empty()) all.items += ' ';
    all.items += std::to_string(i);
  });
  return ran.items;
}

}  // namespace
}  // namespace townlet

STABLE_TORCH_LIBRARY_IMPL(townlet, CompositeExplicitAutograd, m) {
  m.impl("lanes", TORCH_BOX(&townlet::lanes));
  m.impl("isa", TORCH_BOX(&townlet::isa));
  m.impl("isa_levels", TORCH_BOX(&townlet::isa_levels));
  m.impl("last_scratch", TORCH_BOX(&townlet::last_scratch));
  m.impl("last_item_first", TORCH_BOX(&townlet::set_last_item_first));
  m.impl("item_order", TORCH_BOX(&townlet::item_order));
}
