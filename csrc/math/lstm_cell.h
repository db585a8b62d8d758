#pragma once
// The mathematics of the LSTM cell.  Host vectors, host scalars and CUDA threads all compile this one header (C++17).
//
//   c' = f * c + i * g          h' = o * tanh(c')          (gates i, f, o: sigmoid; g: tanh; order i f g o)
//
// T is a float or a vector of floats; M supplies M::sigmoid(T) and M::tanh(T) for it.

#if defined(__CUDACC__)
#define TOWNLET_HD static __host__ __device__ __forceinline__
#define TOWNLET_METHOD __host__ __device__ __forceinline__
#else
#define TOWNLET_HD static inline  // internal linkage: every ISA's build keeps its own copy
#define TOWNLET_METHOD inline __attribute__((always_inline))
#endif

namespace townlet {

template <class T>
struct CellForward {
  T i, f, g, o, c, h;  // activated gates, new cell state, new output
};

// i, f, g, o: pre-activations; c: cell state before the step
template <class M, class T>
TOWNLET_HD CellForward<T> lstm_cell_forward(T i, T f, T g, T o, T c) {
  CellForward<T> out;
  out.i = M::sigmoid(i);
  out.f = M::sigmoid(f);
  out.g = M::tanh(g);
  out.o = M::sigmoid(o);
  out.c = out.f * c + out.i * out.g;
  out.h = out.o * M::tanh(out.c);
  return out;
}

template <class T>
struct CellBackward {
  T di, df, dg, d_o, dc_prev;  // gradients of the pre-activations and of the cell state before the step
};

// i, f, g, o: activated gates; c_prev, c: cell state before and after; dh, dc: gradients of h' and (from later steps)
// c'
template <class M, class T>
TOWNLET_HD CellBackward<T> lstm_cell_backward(T i, T f, T g, T o, T c_prev, T c, T dh, T dc) {
  const T tc = M::tanh(c);
  const T dct = dc + dh * o * (1.0f - tc * tc);
  CellBackward<T> d;
  d.di = dct * g * i * (1.0f - i);
  d.df = dct * c_prev * f * (1.0f - f);
  d.dg = dct * i * (1.0f - g * g);
  d.d_o = dh * tc * o * (1.0f - o);
  d.dc_prev = dct * f;
  return d;
}

}  // namespace townlet
