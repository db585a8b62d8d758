// Runs every variant of the resident kernels on random numbers, under a sanitizer; prints "clean" when all ran.
// Values are the Python tests' business.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" {
const char* emu_forward(const int64_t* sizes, const int64_t* plan, void* const* pointers);
const char* emu_backward(const int64_t* sizes, const int64_t* plan, void* const* pointers);
void emu_set(unsigned order, int ignore);
int emu_sites();
const char* emu_site(int index);
}

namespace {
std::mt19937 rng(1);

std::vector<float> draw(int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = std::uniform_real_distribution<float>(-1, 1)(rng);
  return v;
}
void check(const char* message) {
  if (*message == 0) return;
  std::printf("%s\n", message);
  std::exit(1);
}
void run(const std::vector<int64_t>& plan, int64_t P, int64_t B, int64_t T, int64_t H, bool bf16) {
  const int64_t states = P * B * H, steps = states * T;
  // a float's worth of room for each weight; as bfloat16 the bits mean other small numbers
  std::vector<float> gx = draw(4 * steps), w = draw(4 * P * H * H), h0 = draw(states), c0 = draw(states),
                     y = draw(steps), c = draw(steps), h_T = draw(states), c_T = draw(states), dh0 = draw(states),
                     dc0 = draw(states);
  std::vector<float> gx2 = draw(4 * steps), y2 = draw(steps);
  std::vector<char> reset(static_cast<size_t>(P * B * T));
  for (char& r : reset) r = rng() % 4 == 0;
  const int64_t forward[] = {P, B, T, H, bf16, 2}, backward[] = {P, B, T, H, bf16, 1};
  void* const chains[] = {gx.data(),    w.data(),   h0.data(),  c0.data(),  reset.data(), y.data(),  gx.data(),
                          c.data(),     h_T.data(), c_T.data(), gx2.data(), w.data(),     h0.data(), c0.data(),
                          reset.data(), y2.data(),  nullptr,    nullptr,    nullptr,      nullptr};
  check(emu_forward(forward, plan.data(), chains));
  void* const gradients[] = {gx.data(), c.data(),   c0.data(),  w.data(),   reset.data(),
                             y.data(),  h_T.data(), c_T.data(), dh0.data(), dc0.data()};
  check(emu_backward(backward, plan.data(), gradients));
}
}  // namespace

// driver [index of a barrier to leave out, in the order in which barriers are met]
int main(int argc, char** argv) {
  const int ignore = argc > 1 ? std::atoi(argv[1]) : -1;
  const std::vector<std::vector<int64_t>> plans{{0, 1, 16}, {0, 1, 32}, {1, 2, 16}, {1, 3, 32}, {2, 2, 16}, {2, 3, 32}};
  for (unsigned order : {0u, 1u, 5u})
    for (const auto& plan : plans)
      for (bool bf16 : {false, true}) {
        emu_set(order, ignore);
        run(plan, 2, 3, 3, 19, bf16);
      }
  std::printf("clean\n");
}
