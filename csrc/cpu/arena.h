#pragma once
#include <stddef.h>
#include <stdint.h>

namespace townlet {

// Uninitialised float scratch, 64-byte aligned, from buffers that are kept between calls.
struct Arena {
  explicit Arena(int64_t floats);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  float* data;

 private:
  size_t bytes_;
};

}  // namespace townlet
