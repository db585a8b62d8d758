#define TOWNLET_ISA avx512_bf16
#define TOWNLET_ISA_BIT 8
#define TOWNLET_LANES 16
#define TOWNLET_ROWS 6
#define TOWNLET_BF16
#include "kernels.inl"
