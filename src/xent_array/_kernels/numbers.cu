// Numbers, vectors of them, and what threads do together: what all kernels are written in.

typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;

struct alignas(16) Vector { u32 word[4]; };
struct bfloat16 { u16 bits; };
struct float16 { u16 bits; };

// Two half numbers, the first in the lower half of the word.
template <class S> struct Pair { u32 word; };

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define PARAMETER __grid_constant__
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }

// 2^x within 4 units of rounding; what is below the least normal number becomes 0.
DEVICE float exp2_roughly(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The greater number, or NaN if there is one, which fmaxf drops.
DEVICE float greater(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// The same of two numbers each, and the lesser ones, without NaN.
#define OF_PAIRS(name, instruction, S)                                       \
  DEVICE Pair<S> name(Pair<S> a, Pair<S> b) {                                \
    Pair<S> y;                                                               \
    asm(instruction " %0, %1, %2;" : "=r"(y.word) : "r"(a.word), "r"(b.word)); \
    return y;                                                                \
  }
OF_PAIRS(greater, "max.NaN.bf16x2", bfloat16)
OF_PAIRS(greater, "max.NaN.f16x2", float16)
OF_PAIRS(lesser, "min.bf16x2", bfloat16)
OF_PAIRS(lesser, "min.f16x2", float16)

DEVICE float widen(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

DEVICE void narrow(float x, float16& to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}

DEVICE void narrow(float x, bfloat16& to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}

// Logits are read once, and need no place in the first cache.
DEVICE Vector load(const Vector* from) {
  Vector v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(from));
  return v;
}

// Copy a vector to shared memory some time later; copies that are begun together are a batch.
DEVICE void copy_later(Vector* to, const Vector* from) {
  const u32 at = (u32)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
DEVICE void end_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait for all of this thread's batches but the last `LATER`.
template <int LATER> DEVICE void wait_for_batches() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// Where a thing of this block's shared memory lies in that of another block of the cluster.
template <int K, class T> DEVICE T* of_rank(T* mine, u32 rank) {
  T* theirs = mine;
  if (K > 1) asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return theirs;
}

// Tell the other blocks of a cluster that this one has begun, and wait until all have: not before
// may one write to another.
template <int K> DEVICE void has_begun() {
  if (K > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
template <int K> DEVICE void wait_until_all_have_begun() {
  if (K > 1) asm volatile("barrier.cluster.wait;" ::: "memory");
}

// Wait for all threads of a cluster of K blocks, and see what they wrote.
template <int K> DEVICE void cluster_barrier() {
  if (K == 1) {
    __syncthreads();
  } else {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  }
}

DEVICE void store(Vector* to, Vector v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]),
               "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}
#else  // on a processor, for the tests
#include "shim.h"
#endif

// --- numbers

DEVICE float lowest(float) { return -3.402823466e+38f; }
DEVICE double lowest(double) { return -1.7976931348623157e+308; }

// In the place of a class that there is none of; every class comes before it.
constexpr i64 NOWHERE = 0x7fffffffffffffff;

template <class R> DEVICE R endless() { return R(as_float(0x7f800000u)); }

// A vector of -inf.
DEVICE Vector repeated(u32 one, u32 other) { return {{one, other, one, other}}; }
DEVICE Vector impossible(float) { return repeated(0xff800000u, 0xff800000u); }
DEVICE Vector impossible(bfloat16) { return repeated(0xff80ff80u, 0xff80ff80u); }
DEVICE Vector impossible(float16) { return repeated(0xfc00fc00u, 0xfc00fc00u); }
DEVICE Vector impossible(double) { return repeated(0, 0xfff00000u); }

// And its first entry.
template <class S> DEVICE S impossible_entry() {
  const Vector v = impossible(S());
  S x;
  memcpy(&x, &v, sizeof(S));
  return x;
}

DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(bfloat16 x) { return as_float((u32)x.bits << 16); }
DEVICE void narrow(float x, float& to) { to = x; }
DEVICE void narrow(double x, double& to) { to = x; }

DEVICE double greater(double a, double b) { return b > a || b != b ? b : a; }
DEVICE float lesser(float a, float b) { return fminf(a, b); }
DEVICE double lesser(double a, double b) { return fmin(a, b); }

// As many entries as one instruction compares.
template <class S> struct Compared { typedef S type; };
template <> struct Compared<bfloat16> { typedef Pair<bfloat16> type; };
template <> struct Compared<float16> { typedef Pair<float16> type; };

// One of them, by its number.
DEVICE float side(float x, int) { return x; }
DEVICE double side(double x, int) { return x; }
DEVICE float side(Pair<bfloat16> x, int k) {
  return as_float(k ? x.word & 0xffff0000u : x.word << 16);
}
DEVICE float side(Pair<float16> x, int k) { return widen(float16{u16(x.word >> 16 * k)}); }

DEVICE float greatest(float x) { return x; }
DEVICE double greatest(double x) { return x; }
template <class S> DEVICE float greatest(Pair<S> x) { return greater(side(x, 0), side(x, 1)); }

// exp(x). In float32 the power of two is of a rounded product, and what that lost is made good:
// without it exp(-80) would be off by 60 units of rounding.
DEVICE double exponential(double x) { return exp(x); }
DEVICE float exponential(float x) {
  x = greater(x, -150.0f);  // whose exp is 0, as that of -inf, which would make NaN of `lost`
  const float turned = x * 1.442695041f, power = exp2_roughly(turned);
  const float lost = fmaf(turned, 1.904654323e-9f, fmaf(turned, -0.6931471825f, x));
  return fmaf(power, lost, power);
}

// exp(x), off by four units of rounding and a little more than |x| of them.
DEVICE float exponential_nearby(float x) { return exp2_roughly(x * 1.442695041f); }
DEVICE double exponential_nearby(double x) { return exp(x); }

// exp(x), x <= 0, as well as a result of the logits' dtype needs it: a half one has digits to spare.
template <class S> DEVICE float exponential_for(S, float x) {
  return sizeof(S) == 2 ? exponential_nearby(x) : exponential(x);
}
DEVICE double exponential_for(double, double x) { return exponential(x); }

// A sum, and apart from it what its roundings lose (Knuth).
template <class R> struct Sum {
  R total, lost;

  DEVICE void add(R x) {
    const R sum = total + x, back = sum - total;
    lost += (total - (sum - back)) + (x - back);
    total = sum;
  }

  DEVICE void times(R x) {
    total *= x;
    lost *= x;
  }

  DEVICE R value() const { return total - total == 0 ? total + lost : total; }
};

// A number for each class or row; without memory, the same for all.
template <class R> struct Numbers {
  const R* each;
  R all;

  DEVICE R operator[](i64 i) const { return each ? each[i] : all; }
};

// Rounded one by one, as array code does: no compiler may join two of them.
#ifdef __CUDACC__
DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
DEVICE double minus(double a, double b) { return __dsub_rn(a, b); }
DEVICE double times(double a, double b) { return __dmul_rn(a, b); }
#endif

struct Adding {
  template <class T> DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Greatest {
  template <class T> DEVICE T operator()(T a, T b) const { return greater(a, b); }
};
struct Least {
  template <class T> DEVICE T operator()(T a, T b) const { return b < a ? b : a; }
};

// Join what each of so many lanes of a warp has, a power of two; all of them get the result.
template <class T, class Join> DEVICE T among(u32 lanes, T x, Join join) {
  for (int apart = lanes / 2; apart; apart /= 2) x = join(x, __shfl_xor_sync(~0u, x, apart));
  return x;
}
