#pragma once

namespace townlet {

// What one core can do at most: multiply-adds on registers alone.
struct Peak {
  const char* isa;  // the widest instruction set that this CPU has for it, whatever TOWNLET_ISA says
  double flops;     // per second, a multiply-add counted as two; 0 where the CPU has no such instruction
};

// The best of many short runs within `seconds`, on the calling thread.  bf16: dot products of bfloat16 pairs, summed in
// float32 (AVX512-BF16); else float32.
Peak measure_peak(bool bf16, double seconds);

}  // namespace townlet
