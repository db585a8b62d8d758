// The forms that the tests and benchmarks/gpu/smoke.cu ask for, as form.h reads them.
// clang-format off
"step",
"single", "single:1x32",
"cluster:2", "cluster:3", "cluster:4", "cluster:8", "cluster:16",
"cluster:2x32", "cluster:4x32", "cluster:8x32", "cluster:16x32",
"grid:2", "grid:3", "grid:5", "grid:22",
"grid:2x32", "grid:5x32", "grid:22x32",
