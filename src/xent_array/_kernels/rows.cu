// Statistics and gradients of rows of logits in CUDA memory.
//
// With s the scale, the statistics of a row of logits z are
//
//     top, rest, s·(z_index - top), the sum of w_j·s·(z_j - top), and where the top is,
//
// the last two where they are asked for; rest is the sum of exp(s·(z_j - top)) over all entries but
// one top. The gradient of a row is
//
//     exp(s·(z_j - top))·pull - even·w_j, and at the index a number that is given,
//
// or s·(z_j - top) + pull, where that is asked for.
//
// What these mean is the business of the callers. A null pointer is an array not asked for, or one
// in whose place a number holds for all classes or rows. Rows lie along two axes, the inner one of a
// certain length; steps count entries. Rows of many adjacent classes are read by a block of threads,
// 16 bytes at a time (`wide_...`), rows of few classes, or of classes that lie further apart than the
// rows, by a thread each (`lane_...`).

// Whether the scale is 1, there are no even shares, and nobody asks for the sum of w·(z - top) or for
// the place of the top. Most losses are so, and their kernels are compiled for it.
#ifndef PLAIN
#define PLAIN 0
#endif

// Whether it is the logarithm of the softmax that is written, and not gradients.
#ifndef LOGARITHM
#define LOGARITHM 0
#endif

template <class R> DEVICE R scaled(R scale, R x) { return PLAIN ? x : scale * x; }

// --- statistics

// The threads of a warp look at a row together, or each at one of its own. What is asked of all of
// them is asked at once, so all come to it.
template <bool TOGETHER> struct Team {
  // How many of the team's threads come before this one.
  DEVICE static u32 before() { return TOGETHER ? threadIdx.x % 32 : 0; }

  DEVICE static bool any(bool x) { return TOGETHER ? __any_sync(~0u, x) : x; }

  // How many of them say so.
  DEVICE static u32 count(bool x) { return TOGETHER ? __popc(__ballot_sync(~0u, x)) : x; }

  template <class T, class Join> DEVICE static T all(T x, Join join) {
    return TOGETHER ? among(32, x, join) : x;
  }
};

// What there is to know of some entries of a row.
template <class R> struct Known {
  R top, below;   // the greatest, and the sum of the exponentials of those that are less
  R fall, heavy;  // the sums of w·(z - top) and of w
  i64 argmax;     // of the first entry that equals the top, or of the first NaN
  u32 ties;       // how many equal the top

  // See all of it from the top of more entries; by two steps, see `Seen::move`.
  DEVICE void see_from(R high, R scale) {
    if (top == high) return;
    const R fallen = exponential(scaled(scale, top - high) / 2);
    below = (below + ties) * fallen * fallen;
    if (!PLAIN && heavy != 0) fall += heavy * (top - high);
    if (high == high || top == top) argmax = NOWHERE;
    ties = 0;
  }
};

// What a thread knows of the entries of a row that it has seen. It holds the greatest one apart, or
// of half ones, which are compared in pairs, the greatest of either side: of that and the next entry
// the lesser joins the others, so that each costs one exponential.
//
// Those are of s·(z - base). The base is one for a team, and follows the greatest entry that has joined
// at a distance: so the exponentials that matter are of numbers near 0, and precise enough as the
// processor makes them, however far above the top may be. That the base has fallen behind is seen in
// a sum of them. It seldom moves: whenever it does, what was summed is multiplied, and loses a little.
template <class S, class R, bool TOGETHER> struct Seen {
  typedef Team<TOGETHER> Us;
  typedef typename Compared<S>::type Few;
  enum { SIDES = sizeof(Few) / sizeof(S) };
  enum { TOO_GREAT = 4096 };  // as a sum: up to it no entry is 8.4 above the base, then one is 5

  const R scale;
  const Numbers<R> weight;
  const bool weighted, ranked;  // the sum of w·(z - top), or the argmax, is asked for
  R base;
  Few top;
  Sum<R> below;  // of the exponentials of all entries but the top
  i64 argmax;    // of the first entry that equals the top, or of the first NaN
  R mark;        // no entry is above it
  Sum<R> fall;   // of w·(z - mark)
  Sum<R> heavy;  // of w

  DEVICE Seen(R scale, Numbers<R> weight, bool weighted, bool ranked)
      : scale(scale), weight(weight), weighted(weighted), ranked(ranked), base(lowest(R())),
        below{0, 0}, argmax(NOWHERE), mark(lowest(R())), fall{0, 0}, heavy{0, 0} {
    const Vector v = impossible(S());
    memcpy(&top, &v, sizeof(top));
  }

  // Take entries, the k-th of the class `number(k)`; those that are -inf may be NOWHERE.
  template <int N, class Number> DEVICE void take(const S (&entries)[N], const Number& number) {
    Few z[N / SIDES], low[N / SIDES];
    memcpy(z, entries, sizeof(z));
    if (!PLAIN && ranked) find(z, number);
#pragma unroll
    for (int k = 0; k < N / SIDES; k++) {
      low[k] = lesser(top, z[k]);
      top = greater(top, z[k]);
    }
    R sum = exponentials(low);
    if (Us::any(sum > TOO_GREAT)) {
      move(Us::all(greatest_of(low), Greatest()));
      sum = exponentials(low);
    }
    below.add(sum);
    if (!PLAIN && weighted) sink(z, number);
  }

  template <int N> DEVICE static R greatest_of(const Few (&z)[N]) {
    Few high = z[0];
#pragma unroll
    for (int k = 1; k < N; k++) high = greater(high, z[k]);
    return greatest(high);
  }

  template <int N> DEVICE R exponentials(const Few (&z)[N]) const {
    R part[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < N * SIDES; k++) {
      const R x = exponential_nearby(scaled(scale, side(z[k / SIDES], k % SIDES) - base));
      part[k % 2] = k < 2 ? x : part[k % 2] + x;
    }
    return part[0] + part[1];
  }

  // By two steps: at a great distance from a base below `to` an exponential may be 0, and those of
  // `to` not yet.
  DEVICE void move(R to) {
    const R fallen = exponential(scaled(scale, base - to) / 2);
    below.times(fallen);
    below.times(fallen);
    base = to;
  }

  // Look for the top, or NaN if there is one. Classes may come in any order, but for those taken at
  // once.
  template <int N, class Number> DEVICE void find(const Few (&z)[N], const Number& number) {
    const R before = greatest(top), high = greater(before, greatest_of(z));
    if (high > before || (high != high && before == before)) argmax = NOWHERE;
    int first = -1;
#pragma unroll
    for (int k = N * SIDES - 1; k >= 0; k--) {
      const R x = side(z[k / SIDES], k % SIDES);
      if (x == high || x != x) first = k;
    }
    if (first >= 0) argmax = Least()(argmax, number(first));
  }

  // Sums of differences must not cancel: the mark follows the team's top. No share of a class that
  // is impossible costs nothing: 0·-inf is 0.
  template <int N, class Number> DEVICE void sink(const Few (&z)[N], const Number& number) {
    const R high = greatest_of(z);
    if (Us::any(high > mark)) move_mark(Us::all(high, Greatest()));
    R part = 0, weights = 0;
#pragma unroll
    for (int k = 0; k < N * SIDES; k++) {
      const i64 j = number(k);
      const R w = j < NOWHERE ? weight[j] : R(0), depth = side(z[k / SIDES], k % SIDES) - mark;
      part += w == 0 && depth == -endless<R>() ? R(0) : w * depth;
      weights += w;
    }
    fall.add(part);
    heavy.add(weights);
  }

  DEVICE void move_mark(R to) {
    if (heavy.value() != 0) fall.add(heavy.value() * (mark - to));
    mark = to;
  }

  // What the team has seen, from its own top; all of them come to know it.
  DEVICE Known<R> finish() {
    Known<R> known = {Us::all(greatest(top), Greatest()), 0, 0, 0, NOWHERE, 0};
    if (known.top != -endless<R>()) move(known.top);
    R others = 0;
#pragma unroll
    for (int k = 0; k < SIDES; k++) {
      const R high = side(top, k);
      known.ties += Us::count(high == known.top);
      if (high != known.top) others += exponential(scaled(scale, high - known.top));
    }
    below.add(others);
    known.below = Us::all(below.value(), Adding());
    if (!PLAIN && ranked) {
      const R high = greatest(top);
      known.argmax = Us::all(high == known.top || high != high ? argmax : NOWHERE, Least());
    }
    if (!PLAIN && weighted) {
      if (known.top != -endless<R>()) move_mark(known.top);
      known.fall = Us::all(fall.value(), Adding());
      known.heavy = Us::all(heavy.value(), Adding());
    }
    return known;
  }
};

template <class R> struct Found {
  R *top, *rest, *picked, *fall;
  i64* argmax;

  // `logit` is the logit at the index. The numbers are those that are put, but for the argmax.
  DEVICE void put(i64 row, R logit, R scale, const Known<R>& known, R (&numbers)[4]) const {
    const R high = known.top, none = high - high;  // NaN without a finite top
    numbers[0] = top[row] = high;
    numbers[1] = rest[row] = known.below + (R(known.ties) - 1) + none;
    numbers[2] = picked[row] = scale * (logit - high);
    numbers[3] = scale * known.fall;
    if (fall) fall[row] = numbers[3];
    if (argmax) argmax[row] = known.argmax;
  }

  DEVICE void put(i64 row, R logit, R scale, const Known<R>& known) const {
    R numbers[4];
    put(row, logit, scale, known, numbers);
  }
};

// Where a row is along both axes, the inner one of a certain length.
struct Place {
  i64 outer, inner;

  DEVICE Place(i64 row, i64 length) {
    if ((row | length) >> 32) outer = row / length;
    else outer = (u32)row / (u32)length;  // in a fifth of the time
    inner = row - outer * length;
  }
};

template <class S> struct Rows {
  S* first;
  i64 outer_step, inner_step, class_step;

  DEVICE S* operator[](Place place) const {
    return first + place.outer * outer_step + place.inner * inner_step;
  }
};

// How many entries of a row, of so many classes, precede its first boundary of 16 bytes.
template <class S> DEVICE i64 ragged(const S* row, i64 classes) {
  const i64 head = (16 - (unsigned long long)row % 16) % 16 / sizeof(S);
  return head < classes ? head : classes;
}

// Join what so many lanes of a warp know, a power of two; all of them get it.
template <class R> DEVICE Known<R> joined(Known<R> known, u32 lanes, R scale) {
  const R top = among(lanes, known.top, Greatest());
  known.see_from(top, scale);
  known.top = top;
  known.below = among(lanes, known.below, Adding());
  known.ties = among(lanes, known.ties, Adding());
  if (PLAIN) return known;
  known.argmax = among(lanes, known.argmax, Least());
  known.fall = among(lanes, known.fall, Adding());
  known.heavy = among(lanes, known.heavy, Adding());
  return known;
}

// Join what the warps of a block know, 1, 2, 4 or 8 of them; the threads of the first one get it.
template <class R> DEVICE Known<R> of_block(const Known<R>& mine, R scale) {
  const u32 warps = blockDim.x / 32;
  if (warps == 1) return mine;
  __shared__ Known<R> parts[8];
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  return threadIdx.x < 32 ? joined(parts[threadIdx.x & (warps - 1)], warps, scale) : mine;
}

// Take a row's classes at, at + step, ... below `end`, N at once.
template <int N, class S, class R, bool TOGETHER>
DEVICE void take_apart(Seen<S, R, TOGETHER>& seen, const S* z, i64 class_step, i64 at, i64 end,
                       i64 step) {
  for (; at - Team<TOGETHER>::before() < end; at += N * step) {
    const auto number = [=](int k) { return at + k * step < end ? at + k * step : NOWHERE; };
    S entries[N];
#pragma unroll
    for (int k = 0; k < N; k++)
      entries[k] = number(k) < end ? z[number(k) * class_step] : impossible_entry<S>();
    seen.take(entries, number);
  }
}

// How many vectors of a thread are on their way at once.
enum { FLIGHT = 4 };

// Take vectors of the `count` of a row that begin with a class: the start-th, and those that are each
// a stride further; beyond the last they are of -inf. Plain losses take two at once, for which others
// lack registers.
template <int M, class S, class R>
DEVICE void take_these(Seen<S, R, true>& seen, const Vector (&v)[M], i64 begin, u32 start,
                       u32 stride, u32 count) {
  constexpr int N = 16 / sizeof(S), AT_ONCE = PLAIN ? 2 : 1;
#pragma unroll
  for (int u = 0; u < M; u += AT_ONCE) {
    const u32 first = start + u * stride;
    if (first - Team<true>::before() >= count) return;
    S entries[AT_ONCE * N];
    memcpy(entries, v + u, sizeof(entries));
    seen.take(entries, [=](int k) {
      const u32 i = first + k / N * stride;
      return i < count ? begin + (i64)i * N + k % N : NOWHERE;
    });
  }
}

// Take `count` vectors of a row from a class on whose memory is aligned. They are fewer than 2^32,
// or the row would take 64 GiB. While the first are on their way there is time for something else.
template <class S, class R, class Meanwhile>
DEVICE void take_vectors(Seen<S, R, true>& seen, const S* z, i64 begin, u32 count,
                         const Meanwhile& meanwhile) {
  const u32 before = Team<true>::before(), threads = blockDim.x;
  const Vector* from = (const Vector*)(z + begin);
  for (u32 start = threadIdx.x; start - before < count; start += FLIGHT * threads) {
    Vector v[FLIGHT];
    if (start - before + (FLIGHT - 1) * threads + 31 < count) {  // all of this warp
#pragma unroll
      for (int u = 0; u < FLIGHT; u++) v[u] = load(from + (start + u * threads));
    } else {
#pragma unroll
      for (int u = 0; u < FLIGHT; u++) {
        const u32 i = start + u * threads;
        v[u] = i < count ? load(from + i) : impossible(S());
      }
    }
    if (start == threadIdx.x) meanwhile();
    take_these(seen, v, begin, start, threads, count);
  }
}

// What lies before the vectors of a row and after them: fewer classes than two vectors have, one for
// each thread of a warp.
template <class S> struct Ends {
  i64 first, end;
  S entry;

  DEVICE Ends(const S* z, i64 head, i64 tail, i64 classes)
      : first(threadIdx.x < head ? 0 : tail - head), end(threadIdx.x < 32 ? classes : 0),
        entry(first + threadIdx.x < end ? z[first + threadIdx.x] : impossible_entry<S>()) {}

  template <class R> DEVICE void take(Seen<S, R, true>& seen) const {
    const i64 j = first + threadIdx.x;
    if (!Team<true>::any(j < end)) return;
    S entries[sizeof(S) == 2 ? 2 : 1];
    for (S& x : entries) x = impossible_entry<S>();
    entries[0] = entry;
    seen.take(entries, [&](int k) { return k == 0 && j < end ? j : NOWHERE; });
  }
};

// What a look at rows is given, and what finds a row's index, by a method of a struct.
template <class S, class R, class Steps> struct Stats {
  const S* z;
  i64 outer_step, inner_step, class_step, inner, count, classes;
  double scale, share;
  const R* weight;
  R *top, *rest, *picked, *fall;
  i64* argmax;
  Steps steps;

  DEVICE const S* row(i64 number) const {
    const Rows<const S> rows = {z, outer_step, inner_step, class_step};
    return rows[Place(number, inner)];
  }

  template <bool TOGETHER> DEVICE Seen<S, R, TOGETHER> nothing_seen() const {
    return {R(scale), {weight, R(share)}, fall != nullptr, argmax != nullptr};
  }

  DEVICE Found<R> found() const { return {top, rest, picked, fall, argmax}; }
};

// Of indices that are given; others are found by steps as in columns.cu.
struct Indices {
  const i64* index;

  DEVICE i64 index_of(i64 row) const { return index[row]; }
};

template <class S, class R, class Steps> DEVICE void wide_stats(const Stats<S, R, Steps>& call) {
  constexpr int N = 16 / sizeof(S);
  const i64 row = blockIdx.x, step = call.class_step, classes = call.classes;
  const i64 thread = threadIdx.x, threads = blockDim.x;
  const S* z = call.row(row);
  __shared__ i64 index;  // one thread's alone; here it takes no register meanwhile
  const auto look_up = [&] {
    if (thread == 0) index = call.steps.index_of(row);
  };
  Seen<S, R, true> seen = call.template nothing_seen<true>();
  if (step == 1) {
    const i64 head = ragged(z, classes), vectors = (classes - head) / N;
    const Ends<S> ends(z, head, head + vectors * N, classes);
    if (vectors == 0) look_up();
    take_vectors(seen, z, head, vectors, look_up);
    ends.take(seen);
  } else {
    look_up();
    take_apart<N>(seen, z, step, thread, classes, threads);
  }
  const R at_index = thread == 0 ? R(widen(z[index * step])) : R(0);
  const Known<R> known = of_block(seen.finish(), R(call.scale));
  if (thread == 0) call.found().put(row, at_index, R(call.scale), known);
}

template <class S, class R, class Steps> DEVICE void lane_stats(const Stats<S, R, Steps>& call) {
  const i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x, step = call.class_step;
  if (row >= call.count) return;
  const S* z = call.row(row);
  Seen<S, R, false> seen = call.template nothing_seen<false>();
  take_apart<8>(seen, z, step, 0, call.classes, 1);
  const R at_index = widen(z[call.steps.index_of(row) * step]);
  call.found().put(row, at_index, R(call.scale), seen.finish());
}

// --- gradients

// What the gradient of a row is made of.
template <class R> struct Slope {
  R scale, top, pull, even, chosen;
  i64 index;
  bool kept;
  Numbers<R> weight;

  // The derivative by class j, whose logit is z.
  template <class S> DEVICE S operator()(S z, i64 j) const {
    return j == index ? by_index<S>() : by_other<S>(widen(z), j);
  }

  template <class S> DEVICE S by_index() const { return rounded<S>(chosen); }

  template <class S> DEVICE S by_other(R z, i64 j) const {
    const R fall = scaled(scale, z - top);
    if (LOGARITHM) return rounded<S>(fall + pull);
    const R power = exponential_for(S(), fall);
    return rounded<S>(PLAIN ? power * pull : power * pull - even * weight[j]);
  }

  template <class S> DEVICE S rounded(R x) const {
    S grad;
    narrow(kept ? x : R(0), grad);
    return grad;
  }
};

template <class R> struct Slopes {
  R scale;
  Numbers<R> weight, even;
  const R *top, *pull;
  const i64* index;
  const R* chosen;
  const bool* kept;

  DEVICE Slope<R> operator[](i64 row) const {
    return {scale,       top[row],   pull[row],                even[row],
            chosen[row], index[row], kept ? kept[row] : true, weight};
  }
};

// Write a row's classes at, at + step, ... below `end`.
template <class S, class R>
DEVICE void write_apart(const Slope<R>& slope, const S* z, i64 z_step, S* to, i64 to_step, i64 at,
                        i64 end, i64 step) {
  for (; at < end; at += step) to[at * to_step] = slope(z[at * z_step], at);
}

// Write what lies before a row's vectors and after them.
template <class S, class R>
DEVICE void write_ends(const Slope<R>& slope, const S* z, S* to, i64 head, i64 tail, i64 classes) {
  write_apart(slope, z, 1, to, 1, threadIdx.x, head, blockDim.x);
  write_apart(slope, z, 1, to, 1, tail + threadIdx.x, classes, blockDim.x);
}

// Write the gradients of vectors of logits, of the `count` that begin with a class whose memory is
// aligned: the start-th, and those that are each a stride further. The entry at the index is put right
// by the thread that wrote its vector, so that not each need be asked about.
template <int M, class S, class R>
DEVICE void write_these(const Slope<R>& slope, Vector (&v)[M], S* to, i64 begin, u32 start,
                        u32 stride, u32 count) {
  typedef typename Compared<S>::type Few;
  constexpr int N = 16 / sizeof(S), SIDES = sizeof(Few) / sizeof(S);
  const unsigned long long of_index = (slope.index - begin) / (unsigned long long)N;
#pragma unroll
  for (int u = 0; u < M; u++) {
    const u32 i = start + u * stride;
    if (i >= count) break;
    Few z[N / SIDES];
    S grad[N];
    memcpy(z, &v[u], 16);
#pragma unroll
    for (int k = 0; k < N; k++)
      grad[k] = slope.template by_other<S>(side(z[k / SIDES], k % SIDES), begin + (i64)i * N + k);
    memcpy(&v[u], grad, 16);
    store((Vector*)(to + begin) + i, v[u]);
    if (i == of_index) to[slope.index] = slope.template by_index<S>();
  }
}

// Write up to FLIGHT vectors of a thread.
template <class S, class R>
DEVICE void write_vectors(const Slope<R>& slope, const S* z, S* to, i64 begin, u32 start,
                          u32 count) {
  const Vector* from = (const Vector*)(z + begin);
  const u32 threads = blockDim.x;
  Vector v[FLIGHT];
#pragma unroll
  for (int u = 0; u < FLIGHT; u++)
    if (start + u * threads < count) v[u] = load(from + (start + u * threads));
  write_these(slope, v, to, begin, start, threads, count);
}

// A row's classes are shared by as many blocks, of FLIGHT vectors a thread, as the grid has.
template <class S, class R>
DEVICE void wide_grad(Rows<const S> from, Rows<S> into, i64 inner, i64 count, i64 classes,
                      Slopes<R> slopes) {
  constexpr int N = 16 / sizeof(S);
  const i64 tiles = gridDim.x / count, tile = blockIdx.x % tiles;
  const i64 row = blockIdx.x / tiles, thread = threadIdx.x, threads = blockDim.x;
  const Place place(row, inner);
  const S* z = from[place];
  S* to = into[place];
  const Slope<R> slope = slopes[row];
  const i64 head = ragged(z, classes), vectors = (classes - head) / N, tail = head + vectors * N;
  const bool adjacent = from.class_step == 1 && into.class_step == 1;
  if (!adjacent || head != ragged(to, classes)) {
    const i64 begin = tile * FLIGHT * N * threads, end = begin + FLIGHT * N * threads;
    write_apart(slope, z, from.class_step, to, into.class_step, begin + thread,
                end < classes ? end : classes, threads);
    return;
  }
  write_vectors(slope, z, to, head, tile * FLIGHT * threads + thread, vectors);
  if (tile == 0) write_ends(slope, z, to, head, tail, classes);
}

template <class S, class R>
DEVICE void lane_grad(Rows<const S> from, Rows<S> into, i64 inner, i64 count, i64 classes,
                      Slopes<R> slopes) {
  const i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= count) return;
  const Place place(row, inner);
  const S* z = from[place];
  S* to = into[place];
  write_apart(slopes[row], z, from.class_step, to, into.class_step, 0, classes, 1);
}

// --- the kernels, each compiled when it is asked for

// How many threads a multiprocessor is to have room for. More would spill registers.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200 && !PLAIN)
#define ROOM(R) (sizeof(R) == 4 ? 768 : 256)
#else
#define ROOM(R) (sizeof(R) == 4 ? 1024 : 256)
#endif

#define STATS(kind, name, S, R, Steps)                                                           \
  extern "C" __global__ void __launch_bounds__(128, ROOM(R) / 128) kind##_stats_##name(          \
      const PARAMETER Stats<S, R, Steps> call) {                                                 \
    kind##_stats(call);                                                                          \
  }

#define GRAD(kind, name, S, R)                                                                   \
  extern "C" __global__ void __launch_bounds__(256, ROOM(R) / 256) kind##_grad_##name(           \
      const S* z, i64 outer_step, i64 inner_step, i64 class_step, S* to, i64 to_outer_step,      \
      i64 to_inner_step, i64 to_class_step, i64 inner, i64 count, i64 classes, double scale,     \
      double common, const R* weight, const R* top, const R* pull, const R* even,                \
      const i64* index, const R* chosen, const bool* kept) {                                     \
    const Rows<const S> from = {z, outer_step, inner_step, class_step};                          \
    const Rows<S> into = {to, to_outer_step, to_inner_step, to_class_step};                      \
    const Slopes<R> slopes = {R(scale), {weight, R(1)}, {even, R(common)}, top, pull, index,     \
                              chosen, kept};                                                     \
    kind##_grad(from, into, inner, count, classes, slopes);                                      \
  }
