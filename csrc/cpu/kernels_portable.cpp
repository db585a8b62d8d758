#define TOWNLET_ISA portable
#define TOWNLET_ISA_BIT 1
#define TOWNLET_LANES 4
#define TOWNLET_ROWS 3
#include "kernels.inl"
