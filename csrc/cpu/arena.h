#pragma once
#include <stddef.h>
#include <stdint.h>

namespace townlet {

// Uninitialised float scratch, aligned to 64 bytes.  Its buffers are kept between calls.
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
