#define TOWNLET_ISA avx512
#define TOWNLET_ISA_BIT 4
#define TOWNLET_LANES 16
#define TOWNLET_ROWS 6
#include "kernels.inl"
