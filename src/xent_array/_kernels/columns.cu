// Array code on columns: arithmetic on a few numbers of each row, or each class.
//
// What the loss makes of the statistics of rows is array code, and each of its operations would be
// a launch of its own. `_kernels/cuda_columns.py` writes them down instead, as the method of a struct
//
//     struct Steps {
//       enum { TOTALS, SUMS, REALS };  // how many, and which sums are of reals: a bit of each
//       enum { CONCLUDES };            // whether the sums of the only block are all that is missing
//       enum { AT_ONCE };              // for how many rows a thread has the numbers on their way
//       i64 count;                     // of rows
//       Part* parts;                   // of each sum, one of each block
//       void add_totals(Part* totals) const;
//       void carry_out(i64 row, const Part* totals, Part* sums) const;
//       void conclude(const Part* totals, const Part* sums) const;
//     };
//
// What it means is the business of that array code.

// What sums are made of: half as many digits are lost as in the numbers they are of.
union Part {
  double real;
  i64 whole;
};

// Sum what the blocks of an earlier launch have added up, by a warp, in an order that their number
// alone tells.
template <class T> DEVICE T sum_of(const Part* parts, i64 count, T Part::*number) {
  T sum = 0;
  for (i64 i = threadIdx.x % 32; i < count; i += 32) sum += parts[i].*number;
  return among(32, sum, Adding());
}

// Read a number that no thread of this launch writes: so it need not wait for what was written before.
template <class T> DEVICE T read(const T* from) { return *from; }
DEVICE double read(const double* from) { return __ldg(from); }
DEVICE float read(const float* from) { return __ldg(from); }
DEVICE i64 read(const i64* from) { return __ldg(from); }
DEVICE int read(const int* from) { return __ldg(from); }

// Whether a warp is the one of those of a block to do the k-th of some tasks.
DEVICE bool falls_to_warp(u32 k) { return threadIdx.x / 32 == k % (blockDim.x / 32); }

template <int LANES, class Steps> DEVICE void columns(const Steps& steps) {
  constexpr int AT_ONCE = Steps::AT_ONCE, SUMS = Steps::SUMS, WARPS = LANES / 32;
  __shared__ Part totals[Steps::TOTALS + 1], parts[SUMS + 1][WARPS], all[SUMS + 1];
  steps.add_totals(totals);
  __syncthreads();
  Part sums[SUMS + 1] = {};
  const i64 stride = (i64)gridDim.x * LANES;
  i64 row = (i64)blockIdx.x * LANES + threadIdx.x;
  for (; row + (AT_ONCE - 1) * stride < steps.count; row += AT_ONCE * stride)
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) steps.carry_out(row + u * stride, totals, sums);
  for (; row < steps.count; row += stride) steps.carry_out(row, totals, sums);
  if (SUMS == 0 && !Steps::CONCLUDES) return;
#pragma unroll
  for (int k = 0; k < SUMS; k++) {
    if (Steps::REALS >> k & 1) sums[k].real = among(32, sums[k].real, Adding());
    else sums[k].whole = among(32, sums[k].whole, Adding());
    if (threadIdx.x % 32 == 0) parts[k][threadIdx.x / 32] = sums[k];
  }
  __syncthreads();
  for (int k = threadIdx.x; k < SUMS; k += LANES) {
    Part sum = parts[k][0];
    for (int warp = 1; warp < WARPS; warp++)
      if (Steps::REALS >> k & 1) sum.real += parts[k][warp].real;
      else sum.whole += parts[k][warp].whole;
    steps.parts[(i64)k * gridDim.x + blockIdx.x] = all[k] = sum;
  }
  if (!Steps::CONCLUDES) return;
  __syncthreads();
  if (threadIdx.x == 0) steps.conclude(totals, all);
}

#define COLUMNS(LANES)                                                                           \
  extern "C" __global__ void __launch_bounds__(LANES) columns_of(const PARAMETER Steps steps) {  \
    columns<LANES>(steps);                                                                       \
  }
