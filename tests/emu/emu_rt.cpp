// Runtime of the CUDA-on-CPU test shim.  Compile this file WITHOUT -fsanitize=thread:
// its own bookkeeping is shared between fibers on purpose; it tells ThreadSanitizer
// about fibers and barriers itself (define EMU_TSAN).
#include "cuda_runtime.h"

#include <sys/mman.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifdef EMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#else
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_destroy_fiber(void*) {}
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

#if defined(__x86_64__)
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.pushsection .text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
.popsection
)");
#else
#error "add a context switch for this processor"
#endif

namespace emu {
thread_local const Lane* cur = nullptr;
Options options;
std::uint64_t switches = 0;

namespace {
enum State { kReady, kAtBlock, kAtGroup, kAtWarp, kYielded, kDone };
struct Fiber {
  Lane lane;
  State st = kReady;
  const char* file = "";
  int line = 0, id = 0;
  void *sp = nullptr, *tsan = nullptr;
  unsigned mask = 0;
  Op op = kSync;
  int arg = 0, width = 32;
  std::uint64_t val = 0, res = 0;
  std::uint64_t arrivals = 0, waits = 0;  // at the barrier of the blocks resident together
  char wsync[2];                          // what this lane releases at __syncwarp, in turn
  unsigned nsync = 0;
  char* acquire[32];  // what it acquires after one
};

struct Group;
struct Block {
  Group* group = nullptr;
  unsigned rank = 0;
  std::vector<Fiber> f;
  std::vector<unsigned> order;
  void* sp = nullptr;
  std::uint64_t phase = 0;
  char sync_obj[2];
  std::vector<char> smem;  // as long as asked for, so that AddressSanitizer sees an overrun
  bool done = false;
};
struct Launch {  // what all OS threads of a launch share
  const Shape* shape;
  const std::function<void()>* body;
  char start_obj, end_obj;
  std::atomic<bool> failed{false};
  std::mutex m;
  std::string error;
  void fail(const std::string& e) {
    std::lock_guard<std::mutex> l(m);
    if (!failed) error = e;
    failed = true;
  }
};
struct Group {  // the blocks that are resident together, on one OS thread
  Launch* launch;
  Together kind;
  std::vector<Block> blocks;
  Fiber* running = nullptr;
  Block* block = nullptr;  // of the running fiber
  void *sp = nullptr, *tsan = nullptr;
  std::uint64_t phase = 0, nswitch = 0;
  std::deque<std::size_t> arrived;  // threads that have arrived at barrier `phase`, `phase` + 1, ...
  char sync_obj[2];
  std::mt19937 rng;
  std::size_t threads() const { return blocks.size() * blocks[0].f.size(); }
};
thread_local Group* self = nullptr;

// Every place of a barrier met so far.
struct Sites {
  std::mutex m;
  std::vector<std::string> names;
  int index(const char* file, int line) {
    const char* slash = std::strrchr(file, '/');
    const std::string name = std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
    std::lock_guard<std::mutex> l(m);
    const auto at = std::find(names.begin(), names.end(), name);
    const int i = int(at - names.begin());
    if (at == names.end()) names.push_back(name);
    return i;
  }
};
Sites all_sites;

std::string where(const Fiber& t) {
  static const char* const names[] = {"is runnable",
                                      "waits at __syncthreads",
                                      "waits at a cluster or grid barrier",
                                      "waits at a warp operation",
                                      "spins",
                                      "has exited"};
  return "thread " + std::to_string(t.id) + " of block " + std::to_string(t.lane.bid.x) + " " + names[t.st] +
         (t.st == kDone ? "" : std::string(" ") + t.file + ":" + std::to_string(t.line));
}

void to_scheduler() {
  Group* g = self;
  Fiber* t = g->running;
  __tsan_switch_to_fiber(g->tsan, 1 /* no_sync */);
  emu_switch(&t->sp, g->sp);
}

// A thread's own mistake, found while it runs: no exception can leave a fiber, so its block never goes on.
[[noreturn]] void fail_here(const char* what) {
  self->launch->fail(std::string(what) + ": " + where(*self->running));
  self->running->st = kDone;
  to_scheduler();
  __builtin_unreachable();
}

void entry() {
  Launch* l = self->launch;
  __tsan_acquire(&l->start_obj);
  (*l->body)();
  __tsan_release(&l->end_obj);
  self->running->st = kDone;
  to_scheduler();
  __builtin_unreachable();
}

float from_bf16(unsigned bits) {
  bits <<= 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// mma.sync.m16n8k16: lane 4 g + q holds a's rows g and g + 8 at columns 2q, 2q + 1, 2q + 8, 2q + 9, b's column g at the
// same rows, and d's rows g and g + 8 at columns 2q, 2q + 1.
void run_mma(const Fiber* lanes) {
  float a[16][16], b[16][8];
  const auto of = [&](int lane) { return *reinterpret_cast<const Mma*>(lanes[lane].val); };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 2; ++k)
        a[g + 8 * (i % 2)][2 * q + k + 8 * (i / 2)] = from_bf16(of(lane).a[i] >> (16 * k) & 0xffff);
    for (int i = 0; i < 2; ++i)
      for (int k = 0; k < 2; ++k) b[2 * q + k + 8 * i][g] = from_bf16(of(lane).b[i] >> (16 * k) & 0xffff);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float sum = of(lane).d[i];
      for (int k = 0; k < 16; ++k) sum += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
      of(lane).d[i] = sum;
    }
}

// All lanes of `t`'s mask that still run have arrived?  Then compute every lane's result.
void try_warp(Block& b, Fiber& t) {
  const int base = t.id & ~31, end = std::min<int>(base + 32, (int)b.f.size());
  unsigned live = 0;
  for (int i = base; i < end; ++i)
    if (b.f[i].st != kDone) live |= 1u << (i - base);
  const unsigned need = t.mask & live, exist = end - base == 32 ? ~0u : (1u << (end - base)) - 1;
  if (!(t.mask >> (t.id - base) & 1)) throw std::runtime_error("the mask leaves out its own caller: " + where(t));
  if (options.strict && (t.mask & exist) != need)
    throw std::runtime_error("the mask names a thread that has exited: " + where(t));
  for (int i = base; i < end; ++i) {
    const Fiber& o = b.f[i];
    if (!(need >> (i - base) & 1)) continue;
    if (o.st != kAtWarp) return;  // someone is still to come
    if (o.mask != t.mask || o.op != t.op || o.width != t.width || o.line != t.line || std::strcmp(o.file, t.file))
      throw std::runtime_error("lanes of one warp meet in different warp operations: " + where(o) + "; " + where(t));
  }
  if (t.op == kMma) {
    if (need != ~0u) throw std::runtime_error("mma by less than a warp: " + where(t));
    run_mma(&b.f[base]);
  }
  unsigned ballot = 0;
  std::uint64_t red = t.op == kMin || t.op == kAnd ? ~0ull : 0;
  for (int i = base; i < end; ++i) {
    if (!(need >> (i - base) & 1)) continue;
    const std::uint64_t v = b.f[i].val;
    if (v) ballot |= 1u << (i - base);
    switch (t.op) {
      case kAdd: red += v; break;
      case kMin: red = std::min(red, v); break;
      case kMax: red = std::max(red, v); break;
      case kAnd: red &= v; break;
      case kOr: red |= v; break;
      default: break;
    }
  }
  for (int i = base; i < end; ++i) {
    if (!(need >> (i - base) & 1)) continue;
    Fiber& o = b.f[i];
    const int lane = i - base, lo = lane & ~(o.width - 1), hi = lo + o.width - 1;
    int src = lane;
    switch (o.op) {
      case kShfl: src = lo | (o.arg & (o.width - 1)); break;
      case kUp: src = lane - o.arg < lo ? lane : lane - o.arg; break;
      case kDown: src = lane + o.arg > hi ? lane : lane + o.arg; break;
      case kXor: src = (lane ^ o.arg) > hi ? lane : lane ^ o.arg; break;
      default: break;
    }
    if (o.op >= kShfl && o.op <= kXor) {
      if (!(need >> src & 1))
        throw std::runtime_error("shuffle reads lane " + std::to_string(src) + ", which takes no part: " + where(o));
      o.res = b.f[base + src].val;
    } else if (o.op == kMatch) {
      o.res = 0;
      for (int k = base; k < end; ++k)
        if ((need >> (k - base) & 1) && b.f[k].val == o.val) o.res |= 1ull << (k - base);
    } else if (o.op == kSync) {
      for (int k = base; k < end; ++k)
        o.acquire[k - base] = need >> (k - base) & 1 ? &b.f[k].wsync[b.f[k].nsync & 1] : nullptr;
      std::fill(o.acquire + (end - base), o.acquire + 32, nullptr);
    } else {
      o.res = o.op == kBallot ? ballot : red;
    }
  }
  for (int i = base; i < end; ++i)
    if (need >> (i - base) & 1) b.f[i].st = kReady;
}

// Nobody is runnable and not all wait for other blocks, so all live threads must be at the same barrier.
void release_barrier(Block& b) {
  const Fiber* first = nullptr;
  std::size_t waiting = 0;
  for (auto& t : b.f) {
    if (t.st == kDone) continue;
    ++waiting;
    if (!first) first = &t;
    if (t.st == kAtWarp) throw std::runtime_error("deadlock: " + where(t));
    if (t.st != first->st || t.line != first->line || std::strcmp(t.file, first->file))
      throw std::runtime_error("divergent barrier: " + where(*first) + ", but " + where(t));
  }
  if (options.strict && waiting != b.f.size())
    for (auto& t : b.f)
      if (t.st == kDone) throw std::runtime_error("divergent barrier: " + where(*first) + ", but " + where(t));
  ++b.phase;
  for (auto& t : b.f)
    if (t.st != kDone) t.st = kReady;
}

struct Stacks {  // one mapping per OS thread, kept between launches; each stack ends in a guard page
  char* base = nullptr;
  std::size_t n = 0, each = 0;
  void need(std::size_t k, std::size_t bytes) {
    if (k <= n && bytes == each) return;
    drop();
    n = k, each = bytes;
    base = static_cast<char*>(
        mmap(nullptr, n * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) {
      base = nullptr;
      n = 0;
      throw std::bad_alloc();
    }
    for (std::size_t i = 0; i < n; ++i) mprotect(base + i * each, 4096, PROT_NONE);
  }
  void drop() {
    if (base) munmap(base, n * each);
    base = nullptr;
    n = 0;
  }
  ~Stacks() { drop(); }
};
thread_local Stacks stacks;

void prepare(Group& g, unsigned first) {
  const Shape& shape = *g.launch->shape;
  const dim3 grid = shape.grid, block = shape.block;
  const unsigned n = block.x * block.y * block.z;
  stacks.need(n * g.blocks.size(), options.stack);
  char* top = stacks.base;
  for (unsigned r = 0; r < g.blocks.size(); ++r) {
    Block& b = g.blocks[r];
    const unsigned bi = first + r;
    b.group = &g;
    b.rank = r;
    b.smem.assign(shape.smem, char(0xFF));  // NaN, as float and as bf16
    b.f.resize(n);
    for (unsigned i = 0; i < n; ++i) {
      Fiber& t = b.f[i];
      t.id = (int)i;
      t.lane = {{i % block.x, i / block.x % block.y, i / (block.x * block.y)},
                {bi % grid.x, bi / grid.x % grid.y, bi / (grid.x * grid.y)},
                block,
                grid};
      t.tsan = __tsan_create_fiber(0);
      top += stacks.each;
      void** sp = reinterpret_cast<void**>(top);
      *--sp = nullptr;  // keeps the stack aligned as after a call
      *--sp = reinterpret_cast<void*>(&entry);
      for (int k = 0; k < 6; ++k) *--sp = nullptr;  // callee-saved registers
      t.sp = sp;
      b.order.push_back(options.order == 1 ? n - 1 - i : i);
    }
  }
}

// Every runnable thread of a block, or in a random order half of them, runs to its next barrier or warp operation.
// False if no thread could do more than spin.
bool round(Group& g, Block& b) {
  if (options.order > 1) std::shuffle(b.order.begin(), b.order.end(), g.rng);
  bool moved = false, live = false, waits = true;
  for (unsigned i : b.order) {
    Fiber& t = b.f[i];
    if (t.st == kReady && options.order > 1 && g.rng() % 2) {
      moved = true;  // it could have: a later round will run it
    } else if (t.st == kReady || t.st == kYielded) {
      const bool spun = t.st == kYielded;
      t.st = kReady;
      g.running = &t;
      g.block = &b;
      cur = &t.lane;
      ++g.nswitch;
      __tsan_switch_to_fiber(t.tsan, 1);
      emu_switch(&g.sp, t.sp);
      moved |= !(spun && t.st == kYielded);
      if (t.st == kAtWarp) try_warp(b, t);
      if (t.st == kDone)  // lanes may have been waiting only for this one
        for (unsigned k = i & ~31u; k < std::min<unsigned>(b.f.size(), (i & ~31u) + 32); ++k)
          if (b.f[k].st == kAtWarp) {
            try_warp(b, b.f[k]);
            break;
          }
    }
  }
  bool runnable = false;
  for (auto& t : b.f) {
    live |= t.st != kDone;
    runnable |= t.st == kReady || t.st == kYielded;
    waits &= t.st == kDone || t.st == kAtGroup;
  }
  if (!live) {
    b.done = true;
    __tsan_acquire(&g.launch->end_obj);
    std::vector<char>().swap(b.smem);  // AddressSanitizer sees who still holds a pointer into it
  }
  if (live && !runnable && !waits) {
    release_barrier(b);
    return true;
  }
  return moved;
}

void run_group(Launch& launch, Together kind, unsigned first, unsigned blocks) {
  constexpr int kSpins = 1000;  // rounds in which nothing but spinning happened: it will stay so
  Group g{};
  g.launch = &launch;
  g.kind = kind;
  g.blocks.resize(blocks);
  g.rng.seed(options.order * 7919u + first);
  g.tsan = __tsan_get_current_fiber();
  self = &g;
  try {
    prepare(g, first);
    int idle = 0;
    for (bool live = true; live && !launch.failed;) {
      live = false;
      bool moved = false;
      for (unsigned k = 0; k < blocks; ++k) {
        Block& b = g.blocks[options.order == 0 ? k : options.order == 1 ? blocks - 1 - k : g.rng() % blocks];
        while (!b.done && round(g, b)) {
          moved = true;
          if (options.order > 1) break;  // another block may be next
        }
      }
      bool spinning = false;
      for (auto& b : g.blocks) {
        live |= !b.done;
        for (auto& t : b.f) spinning |= t.st == kReady || t.st == kYielded;
      }
      if (moved) idle = 0;
      if (live && !moved && (!spinning || ++idle == kSpins))
        for (auto& b : g.blocks)
          for (auto& t : b.f)
            if (t.st != kDone) throw std::runtime_error("deadlock: " + where(t));
    }
  } catch (const std::exception& e) {
    launch.fail(e.what());
  }
  self = nullptr;
  cur = nullptr;
  __tsan_acquire(&launch.end_obj);
  for (auto& b : g.blocks)
    for (auto& t : b.f)
      if (t.tsan) __tsan_destroy_fiber(t.tsan);
  __atomic_fetch_add(&switches, g.nswitch, __ATOMIC_RELAXED);
}
}  // namespace

int sites() { return int(all_sites.names.size()); }
const char* site(int index) { return all_sites.names.at(std::size_t(index)).c_str(); }
bool ignored(const char* file, int line) {
  struct Known {
    const char* file;
    int line, index;
  };
  static thread_local std::vector<Known> known;
  for (const Known& k : known)
    if (k.line == line && k.file == file) return k.index == options.ignore;
  known.push_back({file, line, all_sites.index(file, line)});
  return known.back().index == options.ignore;
}

void yield_now() {
  self->running->st = kYielded;
  to_scheduler();
}

void sync_block(const char* file, int line) {
  if (ignored(file, line)) return;
  Block* b = self->block;
  Fiber* t = self->running;
  char* obj = &b->sync_obj[b->phase & 1];
  t->st = kAtBlock, t->file = file, t->line = line;
  __tsan_release(obj);
  to_scheduler();
  __tsan_acquire(obj);
}

void arrive_group(Together kind, const char* file, int line) {
  Group& g = *self;
  Fiber& t = *g.running;
  t.file = file, t.line = line;
  if (g.kind != kind)
    fail_here(kind == kGrid ? "grid barrier in an ordinary launch" : "cluster barrier outside a cluster");
  if (t.waits != t.arrivals) fail_here("arrives twice at one barrier");
  __tsan_release(&g.sync_obj[t.arrivals & 1]);
  const std::size_t ahead = t.arrivals++ - g.phase;
  if (g.arrived.size() <= ahead) g.arrived.resize(ahead + 1);
  ++g.arrived[ahead];
  if (g.arrived[0] != g.threads()) return;
  g.arrived.pop_front();
  ++g.phase;
  for (auto& b : g.blocks)
    for (auto& o : b.f)
      if (o.st == kAtGroup && o.waits < g.phase) o.st = kReady;
}
void wait_group(Together, const char* file, int line) {
  Group& g = *self;
  Fiber& t = *g.running;
  t.file = file, t.line = line;
  if (t.waits == t.arrivals) fail_here("waits at a barrier where it has not arrived");
  if (!ignored(file, line)) {
    if (g.phase <= t.waits) {
      t.st = kAtGroup;
      to_scheduler();
    }
    __tsan_acquire(&g.sync_obj[t.waits & 1]);
  }
  ++t.waits;
}
void sync_group(Together kind, const char* file, int line) {
  arrive_group(kind, file, line);
  wait_group(kind, file, line);
}
unsigned group_rank() { return self->block->rank; }
unsigned group_blocks() { return unsigned(self->blocks.size()); }
void* peer_shared(void* own, int rank, const char* file, int line) {
  Block& b = *self->block;
  self->running->file = file, self->running->line = line;
  const auto at = static_cast<char*>(own) - b.smem.data();
  if (at < 0 || std::size_t(at) > b.smem.size())
    fail_here("asks for a peer's copy of what is not dynamic shared memory");
  if (rank < 0 || std::size_t(rank) >= self->blocks.size()) fail_here("asks for a block that is not in its cluster");
  Block& peer = self->blocks[std::size_t(rank)];
  if (peer.done) fail_here("asks for the shared memory of a block that has exited");
  return peer.smem.data() + at;
}

std::uint64_t warp(unsigned mask, std::uint64_t v, Op op, int arg, int width, const char* file, int line) {
  Fiber* t = self->running;
  t->mask = mask, t->val = v, t->op = op, t->arg = arg, t->width = width;
  t->file = file, t->line = line, t->st = kAtWarp;
  if (op == kSync) __tsan_release(&t->wsync[++t->nsync & 1]);  // shuffles order no memory
  to_scheduler();
  if (op == kSync)
    for (char* o : t->acquire)
      if (o) __tsan_acquire(o);
  return t->res;
}
void* dyn_smem() { return self->block->smem.data(); }

void run(const Shape& shape, const std::function<void()>& body) {
  const dim3 grid = shape.grid, block = shape.block;
  const unsigned nb = grid.x * grid.y * grid.z, threads = block.x * block.y * block.z;
  if (nb == 0 || threads == 0 || threads > 1024) throw std::invalid_argument("bad launch shape");
  if (shape.smem > options.smem_limit) throw std::invalid_argument("too much dynamic shared memory");
  if (shape.cluster == 0 || shape.cluster > 16 || grid.x % shape.cluster)
    throw std::invalid_argument("bad cluster size");
  if (blocks_at_once(shape.cluster) == 0) throw std::invalid_argument("no room for a cluster");
  Launch l;
  l.shape = &shape;
  l.body = &body;
  __tsan_release(&l.start_obj);
  const Together kind = shape.coop ? kGrid : shape.cluster > 1 ? kCluster : kAlone;
  const unsigned each = shape.coop ? nb : shape.cluster, groups = nb / each;
  const unsigned nt = std::min<unsigned>(groups, (unsigned)std::max(1, options.workers));
  const auto work = [&](unsigned w) {
    for (unsigned i = w; i < groups && !l.failed; i += nt) run_group(l, kind, i * each, each);
  };
  if (nt == 1) {
    work(0);
  } else {
    std::vector<std::thread> th;
    for (unsigned w = 0; w < nt; ++w) th.emplace_back(work, w);
    for (auto& t : th) t.join();
  }
  __tsan_acquire(&l.end_obj);
  if (l.failed) throw std::runtime_error("emu: " + l.error);
}
}  // namespace emu
