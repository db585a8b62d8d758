// The kernels, compiled once per instruction set (ISA).  The including file defines TOWNLET_ISA (a name),
// TOWNLET_ISA_BIT, TOWNLET_LANES (floats in a vector) and TOWNLET_ROWS (rows of a register tile).  std containers stay
// out: the linker could keep, for everybody, a copy of an inline function that was compiled for a newer ISA.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(TOWNLET_BF16)
#include <immintrin.h>
#endif

#include "../math/lstm_cell.h"
#include "../math/td_target.h"
#include "arena.h"
#include "kernels.h"

namespace townlet {
namespace TOWNLET_ISA {
constexpr int kLanes = TOWNLET_LANES;
constexpr int kRows = TOWNLET_ROWS;

// clang-format off
#include "vec.h"
#include "operand.h"
#include "gemm.h"
#include "pack.h"
#include "lstm.h"
#include "td_unroll.h"
#include "lstm_unroll.h"
#include "act.h"
#include "adam.h"
#include "spatial.h"
// clang-format on

#define TOWNLET_STRING_(x) #x
#define TOWNLET_STRING(x) TOWNLET_STRING_(x)
extern const Kernels table;
const Kernels table = {TOWNLET_STRING(TOWNLET_ISA),
                       TOWNLET_ISA_BIT,
                       kLanes,
                       pack_size,
                       pack,
                       td_unroll,
                       td_unroll_scratch,
                       lstm_saved,
                       lstm_unroll,
                       lstm_unroll_backward,
                       encoder_size,
                       pack_encoder,
                       step,
                       adam_step,
                       spatial_saved,
                       spatial_encode,
                       spatial_encode_backward};
}  // namespace TOWNLET_ISA
}  // namespace townlet
