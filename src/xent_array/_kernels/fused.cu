// Statistics of a row and its gradient, both from one look at it.
//
// The row is shared by a cluster of blocks, which keep it in their shared memory: so it is read from
// the device's memory once, and its gradient written once. In between the first block makes the
// numbers of the gradient, by methods of a struct as in columns.cu:
//
//     void add_totals(Part* totals) const;
//     i64 index_of(i64 row) const;
//     void carry_out(i64 row, const Part* totals, i64 index, const R* seen, Slope<R>& slope) const;

template <class S, class R, class Steps> struct Fused {
  const S* z;
  i64 z_outer_step, z_inner_step, z_class_step;
  S* to;
  i64 to_outer_step, to_inner_step, to_class_step;
  i64 inner, count, classes;
  double scale, share, even;
  const R *share_of, *weight;
  R *top, *rest, *picked, *fall;
  i64* argmax;
  Steps steps;
};

// What the blocks of a cluster have of each other's.
template <class R> struct Shared {
  Known<R> known[8];  // of each block; the first block's alone is used
  Slope<R> slope;
};

// The threads of a block, and the batches of vectors that each of them has on their way at once.
enum { SHARERS = 256, BATCHES = 4 };

// Have this thread's part of `count` vectors copied, COPIES of them in a batch.
template <int COPIES> DEVICE void fetch(Vector* to, const Vector* from, u32 count) {
  u32 i = threadIdx.x;
#pragma unroll
  for (int batch = 0; batch < BATCHES; batch++) {
#pragma unroll
    for (int u = 0; u < COPIES; u++, i += SHARERS)
      if (i < count) copy_later(to + i, from + i);
    end_batch();
  }
}

// Take a batch of what was copied, once it is there.
template <int BATCH, int COPIES, class S, class R>
DEVICE void take_batch(Seen<S, R, true>& seen, const Vector* from, i64 begin, u32 count) {
  const u32 start = threadIdx.x + BATCH * COPIES * SHARERS;
  wait_for_batches<BATCHES - 1 - BATCH>();
  if (start - Team<true>::before() >= count) return;
  Vector v[COPIES];
#pragma unroll
  for (int u = 0; u < COPIES; u++) {
    const u32 i = start + u * SHARERS;
    v[u] = i < count ? from[i] : impossible(S());
  }
  take_these(seen, v, begin, start, SHARERS, count);
}

// Write the gradients of this thread's part of `count` vectors that were kept.
template <class S, class R>
DEVICE void write_kept(const Slope<R>& slope, const Vector* from, S* to, i64 begin, u32 count) {
  for (u32 i = threadIdx.x; i < count; i += SHARERS) {
    Vector v[1] = {from[i]};
    write_these(slope, v, to, begin, i, SHARERS, count);
  }
}

// K blocks share a row. Its vectors are parted among them; the first takes what is beside those.
template <int K, int COPIES, class S, class R, class Steps>
DEVICE void fused(const Fused<S, R, Steps>& call, Vector* mine) {
  constexpr int N = 16 / sizeof(S);
  __shared__ Shared<R> shared;
  __shared__ Part totals[Steps::TOTALS + 1];
  const i64 row = blockIdx.x / K, classes = call.classes;
  const u32 rank = blockIdx.x % K, thread = threadIdx.x;
  const Rows<const S> from = {call.z, call.z_outer_step, call.z_inner_step, 1};
  const Rows<S> into = {call.to, call.to_outer_step, call.to_inner_step, 1};
  const Place place(row, call.inner);
  const S* z = from[place];
  S* to = into[place];
  const R scale = R(call.scale);
  const i64 head = ragged(z, classes);
  const u32 vectors = (classes - head) / N, part = (vectors + K - 1) / K, first = rank * part;
  const u32 count = first < vectors ? (vectors - first < part ? vectors - first : part) : 0;
  const i64 begin = head + (i64)first * N, tail = head + (i64)vectors * N;

  has_begun<K>();
  fetch<COPIES>(mine, (const Vector*)(z + begin), count);
  const bool leads = rank == 0 && thread == 0;
  const i64 index = leads ? call.steps.index_of(row) : 0;
  const R at_index = leads ? R(widen(z[index])) : R(0);
  Seen<S, R, true> seen(scale, {call.share_of, R(call.share)}, call.fall != nullptr,
                     call.argmax != nullptr);
  if (rank == 0) {
    call.steps.add_totals(totals);
    Ends<S>(z, head, tail, classes).take(seen);
  }
  take_batch<0, COPIES>(seen, mine, begin, count);
  take_batch<1, COPIES>(seen, mine, begin, count);
  take_batch<2, COPIES>(seen, mine, begin, count);
  take_batch<3, COPIES>(seen, mine, begin, count);
  Known<R> known = of_block(seen.finish(), scale);
  wait_until_all_have_begun<K>();
  if (thread == 0) *of_rank<K>(&shared.known[rank], 0) = known;
  cluster_barrier<K>();
  if (rank == 0 && thread < 32) {
    known = joined(shared.known[thread % K], K, scale);
    if (thread == 0) {
      const Found<R> found = {call.top, call.rest, call.picked, call.fall, call.argmax};
      R numbers[4];
      found.put(row, at_index, scale, known, numbers);
      Slope<R> slope = {scale, known.top, 0, R(call.even), 0, index, true, {call.weight, R(1)}};
      call.steps.carry_out(row, totals, index, numbers, slope);
      for (u32 other = 0; other < K; other++) *of_rank<K>(&shared.slope, other) = slope;
    }
  }
  cluster_barrier<K>();
  const Slope<R> slope = shared.slope;
  if (head == ragged(to, classes)) {
    write_kept(slope, mine, to, begin, count);
  } else {
    write_apart(slope, z, 1, to, 1, begin + thread, begin + (i64)count * N, blockDim.x);
  }
  if (rank == 0) write_ends(slope, z, to, head, tail, classes);
}

// How many blocks a multiprocessor is to have room for, in registers and in shared memory. For plain
// losses on an H100 these were the fastest of 3 to 6 blocks of 128 or 256 threads; others take more
// registers, and of those that keep 64 KiB no more than 3 have room.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define RESIDENT(COPIES) 2
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define RESIDENT(COPIES) (!PLAIN ? 2 : COPIES > 2 ? 3 : 4)
#else
#define RESIDENT(COPIES) (!PLAIN || COPIES > 2 ? 3 : LOGARITHM ? 4 : 5)
#endif

#ifdef __CUDACC__
#define FUSED(K, COPIES, name, S)                                                                \
  extern "C" __global__ void __cluster_dims__(K)                                                 \
      __launch_bounds__(SHARERS, RESIDENT(COPIES)) fused##K##_##name(                            \
          const PARAMETER Fused<S, float, Steps> call) {                                         \
    extern __shared__ Vector mine[];                                                             \
    fused<K, COPIES>(call, mine);                                                                \
  }
#else
#define FUSED(K, COPIES, name, S)                                                                \
  extern "C" void fused##K##_##name(const Fused<S, float, Steps> call) {                         \
    static Vector mine[COPIES << 10];                                                            \
    fused<K, COPIES>(call, mine);                                                                \
  }
#endif
