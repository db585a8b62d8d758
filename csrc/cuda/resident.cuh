#pragma once
// The recurrent part of the LSTM with w_hh resident in shared memory for all of time; unroll.h has the contract.
//
//   forward    z_t = gx_t + h_{t-1} w_hh^T,  (h_t, c_t) = cell(z_t, c_{t-1})
//   backward   dz_t = cell'(dy_t + dh_t, dc_t),  dh_{t-1} = dz_t w_hh
//
// A group of `blocks` blocks advances one chain of one member for a tile of `rows` sequences, and a block owns `units`
// hidden units with their four gates.  Chains, members and tiles are further groups, which never meet.
//
// Forward, a block multiplies the whole state of its tile, which it keeps in shared memory, with its rows of w_hh and
// applies the gates in the registers that hold the sums; the new state of its units goes to every block of the group.
// Backward, it multiplies the gradients of its own gates with the same rows of w_hh: partial sums of dh for all units,
// which go to the units' owners, and an owner adds them up in the order of the blocks.  So results repeat bit for bit.
// Either way the group meets once per step, at one barrier, and boxes are double buffered: what step t writes was last
// read before the barrier of the step before.
//
// A thread keeps its cells (4 M pairs of row and unit) for all of time, and with them c, dc and the next step's inputs.

#include "../math/lstm_cell.h"
#include "exchange.cuh"
#include "launch.h"
#include "resident_plan.h"
#include "scalar.cuh"
#include "tile.cuh"
#include "unroll.h"

namespace townlet::cuda {

// Which group this block belongs to, and its part of it.
struct Place {
  int64_t chain, p, first_row;
  __device__ Place(const Resident& s, int64_t P, int64_t B) {
    const unsigned group = blockIdx.x / unsigned(s.blocks), tiles = unsigned((B + s.rows - 1) / s.rows);
    chain = group / (tiles * unsigned(P));
    p = group / tiles % unsigned(P);
    first_row = int64_t(group % tiles) * s.rows;
  }
};

// A thread's cells: whether there is one, and their values in arrays by sequence.  Offsets have 64 bits up to the tile
// and 32 bits within it, which the plan checks.
template <class Tile, int M>
struct Cells {
  int64_t sequence;  // the tile's first
  int rows, T, H;    // rows: sequences left from there on
  int unit, lane;    // unit: the warp's first
  __device__ bool live(int j) const { return Tile::row(lane, j) < rows && unit + Tile::column(lane, j) < H; }
  template <class V>
  __device__ V& state(V* array, int j) const {  // [P][B][H]
    return (array + sequence * H)[Tile::row(lane, j) * H + unit + Tile::column(lane, j)];
  }
  template <class V>
  __device__ V& step(V* array, int j, int64_t t) const {  // [P][B][T][H]
    return (array + (sequence * T + t) * H)[Tile::row(lane, j) * T * H + unit + Tile::column(lane, j)];
  }
  template <class V>
  __device__ V& gate(V* array, int j, int64_t t, int n) const {  // [P][B][T][4][H]
    return (array + (sequence * T + t) * 4 * H)[(Tile::row(lane, j) * T * 4 + n) * H + unit + Tile::column(lane, j)];
  }
  // bit j: whether step t of cell j starts an episode; resets [P][B][T] or null
  __device__ unsigned starts(const bool* resets, int64_t t) const {
    unsigned bits = 0;
    if (resets != nullptr)
#pragma unroll
      for (int j = 0; j < 4 * M; ++j)
        if (Tile::row(lane, j) < rows && (resets + sequence * T + t)[Tile::row(lane, j) * T]) bits |= 1u << j;
    return bits;
  }
  // Has the addresses worked out anew in every step: kept for all of time they would need more registers than there
  // are.
  __device__ void forget() {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(H));
#endif
  }
};

template <class Tile, class Exchange, int M>
__global__ void __launch_bounds__(max_threads(M* kRowTile))
    resident_forward(UnrollForward a, Resident s, char* scratch) {
  if constexpr (!Exchange::kHere) {
    __trap();
    return;
  }
  using Element = typename Tile::Element;
  constexpr int kCells = 4 * M;
  const Place place(s, a.P, a.B);
  const Chain n = place.chain ? a.chain[1] : a.chain[0];
  const int64_t group = blockIdx.x / unsigned(s.blocks);
  Exchange exchange(s.blocks, reinterpret_cast<unsigned*>(scratch + group * kCounterBytes), 0);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own = exchange.rank() * s.units;
  Cells<Tile, M> cell{
      place.p * a.B + place.first_row, int(a.B - place.first_row), int(a.T), int(a.H), own + warp * kUnitTile, lane};
  const int stride = int(s.forward_stride()), chunks = int(s.forward_chunks());

  Element* const w = static_cast<Element*>(dynamic_shared());
  Element* const state = w + s.forward_weights();  // what the product reads; without kGlobal two, which are the boxes
  Element* const boxes = Exchange::kGlobal
                             ? reinterpret_cast<Element*>(scratch + gridDim.x / unsigned(s.blocks) * kCounterBytes) +
                                   group * 2 * s.forward_state()
                             : state;

  // w: [warp][chunk][column][value in chunk], column = gate * 8 + unit in the warp
  const Element* const w_hh = static_cast<const Element*>(n.w_hh) + place.p * 4 * a.H * a.H;
#pragma unroll 1
  for (int i = threadIdx.x; i < s.forward_weights(); i += blockDim.x) {
    const int within = i % Tile::kChunk, column = i / Tile::kChunk % kColumns, rest = i / (Tile::kChunk * kColumns);
    const int k = rest % chunks * Tile::kChunk + within;
    const int unit = own + rest / chunks * kUnitTile + column % kUnitTile;
    w[i] = k < a.H && unit < a.H ? w_hh[(column / kUnitTile * a.H + unit) * a.H + k] : Element{};
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * s.forward_state(); i += blockDim.x) {
    const int64_t row = place.first_row + i / stride, k = i % stride;
    const bool there =
        i < s.forward_state() && row < a.B && k < a.H && !(n.reset != nullptr && n.reset[(place.p * a.B + row) * a.T]);
    state[i] = Tile::element(there ? n.h0[(place.p * a.B + row) * a.H + k] : 0.0f);
  }

  // inputs of the step at hand, then its gates; whether the step after it starts an episode; the states
  float z[4][kCells], c[kCells], h[kCells], passed[kCells];
  unsigned fresh;
  const auto load = [&](int64_t t) {
    fresh = t + 1 < a.T ? cell.starts(n.reset, t + 1) : 0;
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
#pragma unroll
      for (int g = 0; g < 4; ++g) z[g][j] = cell.live(j) ? cell.gate(n.gx, j, t, g) : 0.0f;
    }
  };
  fresh = cell.starts(n.reset, 0);
#pragma unroll
  for (int j = 0; j < kCells; ++j) c[j] = cell.live(j) && !(fresh >> j & 1) ? cell.state(n.c0, j) : 0.0f;
  load(0);
  exchange.arrive();
  exchange.wait();

  for (int64_t t = 0; t < a.T; ++t) {
    cell.forget();
    const bool more = t + 1 < a.T;
    const Element* const from = Exchange::kGlobal ? state : state + t % 2 * s.forward_state();
    Tile::template product<M, (Tile::kChunk > 4 ? 4 / M : 1)>(from, stride, w + warp * chunks * kColumns * Tile::kChunk,
                                                              chunks, lane, z);
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      const CellForward<float> out = lstm_cell_forward<Scalar>(z[0][j], z[1][j], z[2][j], z[3][j], c[j]);
      z[0][j] = out.i;
      z[1][j] = out.f;
      z[2][j] = out.g;
      z[3][j] = out.o;
      c[j] = out.c;
      h[j] = out.h;
      passed[j] = cell.live(j) && !(fresh >> j & 1) ? out.h : 0.0f;
    }
    if (more) {
      Element* const box = boxes + (t + 1) % 2 * s.forward_state();
      for (int r = 0; r < exchange.copies(); ++r)
        Tile::template put<M>(exchange.at(box, r) + own + warp * kUnitTile, stride, lane, passed);
      exchange.arrive();
    }
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      if (cell.live(j)) {
        cell.step(n.y, j, t) = h[j];
        if (n.c != nullptr) cell.step(n.c, j, t) = c[j];
        if (n.gates != nullptr)
#pragma unroll
          for (int g = 0; g < 4; ++g) cell.gate(n.gates, j, t, g) = z[g][j];
      }
      if (fresh >> j & 1) c[j] = 0.0f;
    }
    if (more) {
      load(t + 1);
      exchange.wait();
      if (Exchange::kGlobal) {
        const uint4* const box = reinterpret_cast<const uint4*>(boxes + (t + 1) % 2 * s.forward_state());
        const int words = int(s.forward_state() * sizeof(Element) / sizeof(uint4));
        for (int i = threadIdx.x; i < words; i += blockDim.x) reinterpret_cast<uint4*>(state)[i] = __ldcg(box + i);
        __syncthreads();
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    if (cell.live(j) && n.h_final != nullptr) cell.state(n.h_final, j) = h[j];
    if (cell.live(j) && n.c_final != nullptr) cell.state(n.c_final, j) = c[j];
  }
}

template <class Tile, class Exchange, int M>
__global__ void __launch_bounds__(max_threads(M* kRowTile))
    resident_backward(UnrollBackward a, Resident s, char* scratch) {
  if constexpr (!Exchange::kHere) {
    __trap();
    return;
  }
  using Element = typename Tile::Element;
  constexpr int kCells = 4 * M;
  const Place place(s, a.P, a.B);
  const int64_t group = blockIdx.x / unsigned(s.blocks);
  Exchange exchange(s.blocks, reinterpret_cast<unsigned*>(scratch + group * kCounterBytes), s.inbox() * 4);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int rank = exchange.rank(), own = rank * s.units;
  Cells<Tile, M> cell{
      place.p * a.B + place.first_row, int(a.B - place.first_row), int(a.T), int(a.H), own + warp * kUnitTile, lane};
  const int stride = int(s.backward_stride()), chunks = int(s.backward_chunks());

  Element* const w = static_cast<Element*>(dynamic_shared());
  Element* const dz = w + s.backward_weights();  // [rows][4 units] gradients of the own gates
  float* const boxes = Exchange::kGlobal
                           ? reinterpret_cast<float*>(scratch + gridDim.x / unsigned(s.blocks) * kCounterBytes) +
                                 group * 2 * s.blocks * s.inbox()
                           : reinterpret_cast<float*>(dz + s.rows * stride);
  const int64_t box_floats = s.inbox() * (Exchange::kGlobal ? s.blocks : 1);  // from one buffer to the other

  // w: [tile of 32 hidden units][chunk][column][value in chunk], inner index = gate * units + own unit
  const Element* const w_hh = static_cast<const Element*>(a.w_hh) + place.p * 4 * a.H * a.H;
#pragma unroll 1
  for (int i = threadIdx.x; i < s.backward_weights(); i += blockDim.x) {
    const int column = i % kColumns, k = i / kColumns % (4 * s.units), tile = i / (kColumns * 4 * s.units);
    const int64_t to = tile * kColumns + column, unit = own + k % s.units;
    w[((tile * chunks + k / Tile::kChunk) * kColumns + column) * Tile::kChunk + k % Tile::kChunk] =
        to < a.H && unit < a.H ? w_hh[(k / s.units * a.H + unit) * a.H + to] : Element{};
  }

  // of the step at hand: gates, then their gradients; cell states before and after; the output's own gradient; whether
  // it starts an episode; the gradients that come back from the step after it
  float z[4][kCells], before[kCells], after[kCells], dy[kCells], dh[kCells], dc[kCells];
  unsigned fresh;
  const auto load = [&](int64_t t) {
    fresh = cell.starts(a.reset, t);
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      const bool live = cell.live(j);
#pragma unroll
      for (int g = 0; g < 4; ++g) z[g][j] = live ? cell.gate(a.gates, j, t, g) : 0.0f;
      before[j] = !live || (fresh >> j & 1) ? 0.0f : t > 0 ? cell.step(a.c, j, t - 1) : cell.state(a.c0, j);
      after[j] = live ? cell.step(a.c, j, t) : 0.0f;
      dy[j] = live ? cell.step(a.dy, j, t) : 0.0f;
    }
  };
#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    dh[j] = cell.live(j) && a.dh != nullptr ? cell.state(a.dh, j) : 0.0f;
    dc[j] = cell.live(j) && a.dc != nullptr ? cell.state(a.dc, j) : 0.0f;
  }
  load(a.T - 1);
  exchange.arrive();
  exchange.wait();

  for (int64_t t = a.T - 1; t >= a.burn_in; --t) {
    cell.forget();
    const bool more = t > a.burn_in || (t == 0 && a.dh0 != nullptr);  // somebody wants dh of the step before
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      const CellBackward<float> d =
          lstm_cell_backward<Scalar>(z[0][j], z[1][j], z[2][j], z[3][j], before[j], after[j], dy[j] + dh[j], dc[j]);
      z[0][j] = d.di;
      z[1][j] = d.df;
      z[2][j] = d.dg;
      z[3][j] = d.d_o;
      dc[j] = (fresh >> j & 1) ? 0.0f : d.dc_prev;
    }
    if (more)
#pragma unroll
      for (int g = 0; g < 4; ++g) Tile::template put<M>(dz + g * s.units + warp * kUnitTile, stride, lane, z[g]);
#pragma unroll
    for (int j = 0; j < kCells; ++j)
      if (cell.live(j))
#pragma unroll
        for (int g = 0; g < 4; ++g) cell.gate(a.gates, j, t, g) = z[g][j];
    if (!more) continue;

    __syncthreads();
    float* const box = boxes + t % 2 * box_floats;
#pragma unroll 1
    for (int tile = warp; tile < s.backward_tiles(); tile += warps) {
      float sum[4][kCells] = {};
      Tile::template product<M, M>(dz, stride, w + tile * chunks * kColumns * Tile::kChunk, chunks, lane, sum);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int unit = tile * kColumns + q * kUnitTile;
        if (unit >= s.padded()) continue;
        float* const to = exchange.at(box, unit / s.units) + rank * s.rows * s.units + unit % s.units;
        Tile::template put_floats<M>(to, s.units, lane, sum[q]);
      }
    }
    exchange.arrive();
    const unsigned cut = fresh;
    if (t > a.burn_in) load(t - 1);
    const float* const from = exchange.own(box) + warp * kUnitTile;
    exchange.wait();
#pragma unroll
    for (int j = 0; j < kCells; ++j) {
      const float* const part = from + Tile::row(lane, j) * s.units + Tile::column(lane, j);
      float sum = 0.0f;
#pragma unroll 1
      for (int r = 0; r < s.blocks; ++r) sum += Exchange::read(part + r * s.rows * s.units);
      dh[j] = (cut >> j & 1) ? 0.0f : sum;
    }
  }

#pragma unroll
  for (int j = 0; j < kCells; ++j) {
    if (!cell.live(j)) continue;
#pragma unroll 1
    for (int64_t t = 0; t < a.burn_in; ++t)
#pragma unroll
      for (int g = 0; g < 4; ++g) cell.gate(a.gates, j, t, g) = 0.0f;
    // the state that enters the first step with a gradient is a constant, unless that is the first step of all
    if (a.dh0 != nullptr) cell.state(a.dh0, j) = a.burn_in == 0 ? dh[j] : 0.0f;
    if (a.dc0 != nullptr) cell.state(a.dc0, j) = a.burn_in == 0 ? dc[j] : 0.0f;
  }
}

}  // namespace townlet::cuda
