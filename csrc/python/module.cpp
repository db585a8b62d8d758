// townlet._C: what Python needs from C++ through numpy arrays, without torch.
//
//   philox_block, philox_uniform   counter-based random numbers (math/philox.h)
//   Town                           the survival world (town/)
//   measure_peak                   the benchmarks' yardstick (cpu/peak.h)
//   build_info                     compiler and language standard of this build
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "../cpu/peak.h"
#include "../math/philox.h"
#include "bind_town.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang";
constexpr const char* kCompilerVersion = __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc";
constexpr const char* kCompilerVersion = __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
constexpr const char* kCompilerVersion = "unknown";
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["compiler_version"] = kCompilerVersion;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["cuda_architectures"] = TOWNLET_CUDA_BUILT;  // those that _cuda.so was built for
  return info;
}

using Keys = py::array_t<std::uint64_t, py::array::c_style>;

py::array_t<double> philox_uniform(const Keys& keys, std::uint32_t stream, std::uint64_t counter, std::int64_t n) {
  if (keys.ndim() != 1) {
    throw std::invalid_argument("keys has " + std::to_string(keys.ndim()) +
                                " dimensions; expected a uint64 array of shape [P]");
  }
  constexpr std::int64_t kMost = 2 * static_cast<std::int64_t>(std::numeric_limits<std::uint32_t>::max());
  if (n < 0 || n > kMost) {
    throw std::invalid_argument("n is " + std::to_string(n) + "; expected 0.." + std::to_string(kMost));
  }
  const py::ssize_t members = keys.shape(0);
  py::array_t<double> out({members, static_cast<py::ssize_t>(n)});
  const std::uint64_t* key = keys.data();
  double* to = out.mutable_data();
  {
    py::gil_scoped_release nogil;
    for (py::ssize_t p = 0; p < members; ++p, to += n) {
      for (std::int64_t i = 0; i < n; i += 2) {
        const auto pair = townlet::philox_uniform_pair(key[p], stream, counter, static_cast<std::uint32_t>(i / 2));
        to[i] = pair[0];
        if (i + 1 < n) {
          to[i + 1] = pair[1];
        }
      }
    }
  }
  return out;
}

py::tuple philox_block(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3, std::uint64_t key) {
  const auto out = townlet::philox4x32_10({c0, c1, c2, c3}, key);
  return py::make_tuple(out[0], out[1], out[2], out[3]);
}

std::pair<std::string, double> measure_peak(bool bf16, double seconds) {
  const py::gil_scoped_release nogil;
  const townlet::Peak peak = townlet::measure_peak(bf16, seconds);
  return {peak.isa, peak.flops};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Townlet's numpy-facing C++: random numbers and the Town simulator.";
  m.def("build_info", &build_info, "The compiler, its version and __cplusplus of this build.");
  m.def("philox_uniform", &philox_uniform, py::arg("keys"), py::arg("stream"), py::arg("counter"), py::arg("n"),
        "Numbers in [0, 1), float64 [P, n]. Element [p, i] is a function of (keys[p], stream, counter, i) alone.");
  m.def("philox_block", &philox_block, py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"), py::arg("key"),
        "One raw Philox4x32-10 block of four 32-bit words, for tests against published vectors.");
  m.def("measure_peak", &measure_peak, py::arg("bf16"), py::arg("seconds"),
        "The instruction set and the FLOP/s of the calling thread's core, from multiply-adds on registers alone: 0 "
        "FLOP/s where the CPU has no bfloat16 dot product. Releases the interpreter lock.");
  townlet::bind_town(m);
}
