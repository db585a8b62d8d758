#pragma once
// What lies between the matrix products, row by row.  N rows of a member each; cudaError_t as int.

#include <cstdint>

namespace townlet::cuda {

// x [P][N][C] += bias [P][C], then ReLU where asked for
int add_bias(float* x, const float* bias, int64_t P, int64_t N, int64_t C, bool relu, void* stream);
// advantages [rows][A] become Q-values: value [rows] + advantage - their mean (Wang et al. 2016)
int dueling(float* adv, const float* val, int64_t rows, int64_t A, void* stream);
// dx [P][N][F] += d_val [P][N] w_val [P][F] where there is a value stream, then 0 where hidden [P][N][F] is not
// positive
int head_gradient(float* dx, const float* d_val, const float* w_val, const float* hidden, int64_t P, int64_t N,
                  int64_t F, void* stream);
// before [P][B][T][H]: the output that enters each step: h0 or the step before's y, 0 where an episode starts
int previous_outputs(float* before, const float* y, const float* h0, const bool* reset, int64_t sequences, int64_t T,
                     int64_t H, void* stream);

}  // namespace townlet::cuda
