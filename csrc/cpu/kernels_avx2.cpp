#define TOWNLET_ISA avx2
#define TOWNLET_ISA_BIT 2
#define TOWNLET_LANES 8
#define TOWNLET_ROWS 3
#include "kernels.inl"
