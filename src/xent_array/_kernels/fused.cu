// Statistics of a row and its gradient, both from one look at it.
//
// The row is shared by a cluster of blocks, which keep it in their shared memory: so it is read from
// the device's memory once, and its gradient written once. In between the first of them makes the
// numbers of the gradient by the steps that it is given, those of a struct as in columns.cu.

template <class S, class R, class Steps> struct Fused {
  const S* z;
  i64 z_outer_step, z_inner_step, z_class_step;
  S* to;
  i64 to_outer_step, to_inner_step, to_class_step;
  i64 inner, count, classes;
  double scale, share, owed;
  const R *share_of, *weight;
  const i64* index;
  R *top, *rest, *picked, *fall;
  i64* place;
  const R *pull, *even, *chosen;
  const bool* kept;
  Steps steps;

  DEVICE Found<R> found() const { return {index, top, rest, picked, fall, place}; }

  DEVICE Slope<R> slope(i64 row) const {
    const Slopes<R> slopes = {R(scale), {weight, R(1)}, {even, R(owed)}, top, pull, index, chosen,
                              kept};
    return slopes[row];
  }
};

// What the blocks of a cluster have of each other's.
template <class R> struct Shared {
  Known<R> known[8];  // of each block; the first block's alone is used
  Slope<R> slope;
};

// K blocks share a row. Its vectors are parted among them; the first takes what is beside those.
template <int K, class S, class R, class Steps>
DEVICE void fused(const Fused<S, R, Steps>& call, Vector* mine) {
  constexpr int N = 16 / sizeof(S);
  __shared__ Shared<R> shared;
  __shared__ Part totals[Steps::TOTALS + 1];
  const i64 row = blockIdx.x / K, classes = call.classes;
  const u32 rank = blockIdx.x % K, thread = threadIdx.x, threads = blockDim.x;
  const Rows<const S> from = {call.z, call.inner, call.z_outer_step, call.z_inner_step, 1};
  const Rows<S> into = {call.to, call.inner, call.to_outer_step, call.to_inner_step, 1};
  const S* z = from[row];
  S* to = into[row];
  const R scale = R(call.scale);
  const i64 head = ragged(z, classes);
  const u32 vectors = (classes - head) / N, part = (vectors + K - 1) / K, first = rank * part;
  const u32 count = first < vectors ? (vectors - first < part ? vectors - first : part) : 0;
  const i64 begin = head + (i64)first * N, tail = head + (i64)vectors * N;

  Seen<R, true> seen(scale, {call.share_of, R(call.share)}, call.fall != nullptr,
                     call.place != nullptr);
  take_vectors(seen, z, begin, count, mine);
  if (rank == 0) {
    take_ends(seen, z, head, tail, classes);
    call.steps.add_totals(totals);
  }
  Known<R> known = of_block(seen.finish(), scale);
  if (thread == 0) *of_rank<K>(&shared.known[rank], 0) = known;
  cluster_barrier<K>();
  if (rank == 0 && thread < 32) {
    known = joined(shared.known[thread % K], K, scale);
    if (thread == 0) {
      call.found().put(row, widen(z[call.index[row]]), scale, known);
      call.steps.carry_out(row, totals, nullptr);
    }
    __syncwarp();
    if (thread < K) *of_rank<K>(&shared.slope, thread) = call.slope(row);
  }
  cluster_barrier<K>();
  const Slope<R> slope = shared.slope;
  if (head == ragged(to, classes)) {
    for (u32 i = thread; i < count; i += FLIGHT * threads)
      write_vectors(slope, z, to, begin, i, count, mine);
  } else {
    write_apart(slope, z, 1, to, 1, begin + thread, begin + (i64)count * N, threads);
  }
  if (rank == 0) {
    write_apart(slope, z, 1, to, 1, thread, head, threads);
    write_apart(slope, z, 1, to, 1, tail + thread, classes, threads);
  }
}

// How many blocks a multiprocessor is to have room for, in registers and in shared memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define RESIDENT 3
#else
#define RESIDENT 6
#endif

#ifdef __CUDACC__
#define FUSED(K, name, S)                                                                        \
  extern "C" __global__ void __cluster_dims__(K) __launch_bounds__(128, RESIDENT) fused##K##_##name(\
      const PARAMETER Fused<S, float, Steps> call) {                                             \
    extern __shared__ Vector mine[];                                                             \
    fused<K>(call, mine);                                                                        \
  }
#else
#define FUSED(K, name, S)                                                                        \
  extern "C" void fused##K##_##name(const Fused<S, float, Steps> call) {                         \
    static Vector mine[1 << 11];                                                                 \
    fused<K>(call, mine);                                                                        \
  }
#endif
