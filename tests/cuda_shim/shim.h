// CUDA's words on a processor: the threads of a block are fibers of one thread, which take turns at
// barriers and shuffles. Misaligned vectors are seen; races, and what a warp does at once, are not.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define DEVICE inline
#define PARAMETER
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

struct Dim { u32 x; };

// --- fibers

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool begun = false, done = false;
  std::unique_ptr<char[]> stack{new char[1 << 16]};
  Dim index;
};

static std::vector<Fiber> fibers;
static u32 current, arrived, barriers;
static jmp_buf scheduler;
static Dim blockIdx, blockDim, gridDim;
static void (*entry)(const void*);
static const void* arguments;

#define threadIdx (fibers[current].index)

static void take_turns() {
  if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}

static void run_fiber() {
  entry(arguments);
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

// The first start of a fiber needs its context, which is slow; later turns are jumps.
static void resume(Fiber& fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

static void run_block() {
  for (Fiber& fiber : fibers) {
    fiber.begun = fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = 1 << 16;
    makecontext(&fiber.start, run_fiber, 0);
  }
  arrived = 0;
  // From the first to the last, then back: what lacks a barrier depends on the order.
  static u32 running, turn;
  static bool back;
  for (running = 1, back = false; running; back = !back)
    for (running = 0, turn = 0; turn < fibers.size(); turn++) {
      current = back ? fibers.size() - 1 - turn : turn;
      if (fibers[current].done) continue;
      running++;
      resume(fibers[current]);
    }
}

template <class Kernel> void run_grid(u32 blocks, u32 threads, const Kernel& kernel) {
  if (fibers.size() != threads) {
    fibers = std::vector<Fiber>(threads);
    for (u32 i = 0; i < threads; i++) fibers[i].index = {i};
  }
  entry = [](const void* k) { (*(const Kernel*)k)(); };
  arguments = &kernel;
  blockDim = {threads};
  gridDim = {blocks};
  for (blockIdx = {0}; blockIdx.x < blocks; blockIdx.x++) run_block();
}

// --- what threads do together

static void __syncthreads() {
  const u32 mine = barriers;
  if (++arrived == fibers.size()) {
    arrived = 0;
    barriers++;
  }
  while (barriers == mine) take_turns();
}

// All lanes of a warp write, then all read; two sets of slots, lest the next ones overwrite.
template <class T, class Read> auto exchange(T x, const Read& read) {
  static u32 writers[32], turns[32];
  static T slots[32][2][32];
  const u32 warp = current / 32, turn = turns[warp];
  slots[warp][turn % 2][current % 32] = x;
  if (++writers[warp] == 32) {
    writers[warp] = 0;
    turns[warp]++;
  }
  while (turns[warp] == turn) take_turns();
  return read(slots[warp][turn % 2]);
}

template <class T> T __shfl_xor_sync(u32, T x, int apart) {
  return exchange(x, [=](const T* all) { return all[(current % 32) ^ apart]; });
}

static u32 __ballot_sync(u32, bool x) {
  return exchange(x, [](const bool* all) {
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; lane++) bits |= (u32)all[lane] << lane;
    return bits;
  });
}
static u32 __popc(u32 bits) { return __builtin_popcount(bits); }

static void __syncwarp() { __shfl_xor_sync(~0u, 0, 0); }

// There are no clusters here but of one block.
template <int K, class T> T* of_rank(T* mine, u32) { return mine; }
template <int K> void has_begun() {}
template <int K> void wait_until_all_have_begun() {}
template <int K> void cluster_barrier() { __syncthreads(); }

static bool __any_sync(u32, bool x) {
  return exchange(x, [](const bool* all) { return std::any_of(all, all + 32, std::identity()); });
}

// --- numbers

inline float as_float(u32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline u32 bits_of(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}

template <class R> R plus(R a, R b) { return a + b; }
template <class R> R minus(R a, R b) { return a - b; }
template <class R> R times(R a, R b) { return a * b; }

// As wrong as the instruction may be, upwards or downwards as the bits will have it.
inline float exp2_roughly(float x) {
  const double exact = std::exp2((double)x), off = std::ldexp(1.0, -22);
  const float y = (float)(x == 0 ? exact : exact * (bits_of(x) % 3 ? 1 + off : 1 - off));
  return y < as_float(0x00800000u) ? 0.0f : y;
}

inline float greater(float a, float b) { return b > a || b != b ? b : a; }

inline float widen(float16 x) {
  _Float16 half;
  memcpy(&half, &x, 2);
  return (float)half;
}

inline void narrow(float x, float16& to) {
  const _Float16 half = (_Float16)x;
  memcpy(&to, &half, 2);
}

inline void narrow(float x, bfloat16& to) {
  const u32 bits = bits_of(x);
  to.bits = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}

// A pair from what `join` makes of the numbers of either side.
template <class S> Pair<S> by_sides(Pair<S> a, Pair<S> b, float (*join)(float, float)) {
  S x[2], y[2];
  memcpy(x, &a, 4);
  memcpy(y, &b, 4);
  for (int k = 0; k < 2; k++) narrow(join(widen(x[k]), widen(y[k])), x[k]);
  Pair<S> joined;
  memcpy(&joined, x, 4);
  return joined;
}
template <class S> Pair<S> greater(Pair<S> a, Pair<S> b) { return by_sides(a, b, greater); }
template <class S> Pair<S> lesser(Pair<S> a, Pair<S> b) { return by_sides(a, b, std::fmin); }

// A vector that is not aligned is an error of the device.
inline void check(const void* address) {
  if ((unsigned long long)address % 16) abort();
}

inline Vector load(const Vector* from) {
  check(from);
  return *from;
}

template <class T> T __ldg(const T* from) { return *from; }
inline void copy_later(Vector* to, const Vector* from) { *to = load(from); }
inline void end_batch() {}
template <int LATER> void wait_for_batches() {}

inline void store(Vector* to, Vector v) {
  check(to);
  *to = v;
}
