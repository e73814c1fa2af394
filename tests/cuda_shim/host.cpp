// The kernels of rows.cu as functions of a library, run_NAME(blocks, threads, arguments), and their
// exponential.

#include <utility>

#include "rows.cu"
#include "columns.cu"
#include "fused.cu"

// A parameter: an integer, an address or a double, in eight bytes.
union Word {
  i64 integer;
  double number;
  void* address;
};

inline void unpack(Word word, i64& to) { to = word.integer; }
inline void unpack(Word word, double& to) { to = word.number; }
template <class T> void unpack(Word word, T*& to) { to = (T*)word.address; }

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), const Word* words, std::index_sequence<I...>) {
  const auto unpacked = [&]<class T>(Word word) { T to; unpack(word, to); return to; };
  kernel(unpacked.template operator()<A>(words[I])...);
}

template <class... A>
void launch(void (*kernel)(A...), u32 blocks, u32 threads, const Word* words) {
  run_grid(blocks, threads, [&] { call(kernel, words, std::index_sequence_for<A...>()); });
}

template <class R>
void launch(void (*kernel)(Columns<R>), u32 blocks, u32 threads, const Word* words) {
  run_grid(blocks, threads, [&] { kernel(*(const Columns<R>*)words); });
}

template <class S, class R>
void launch(void (*kernel)(Fused<S, R>), u32 blocks, u32 threads, const Word* words) {
  run_grid(blocks, threads, [&] { kernel(*(const Fused<S, R>*)words); });
}

#define RUN(kernel)                                                                    \
  extern "C" void run_##kernel(u32 blocks, u32 threads, const Word* words) {           \
    launch(kernel, blocks, threads, words);                                            \
  }
#define ROWS(name, S, R)                                                               \
  STATS(wide, name, S, R) STATS(lane, name, S, R) GRAD(wide, name, S, R) GRAD(lane, name, S, R) \
  RUN(wide_stats_##name) RUN(lane_stats_##name) RUN(wide_grad_##name) RUN(lane_grad_##name)
#define ONE_LOOK(name, S) FUSED(1, name, S) RUN(fused1_##name)
#define OF_COLUMNS(R, name) COLUMNS(name, R) RUN(columns_##name)

ROWS(float32, float, float)
ROWS(bfloat16, bfloat16, float)
ROWS(float16, float16, float)
ROWS(float64, double, double)
ONE_LOOK(float32, float)
ONE_LOOK(bfloat16, bfloat16)
ONE_LOOK(float16, float16)
OF_COLUMNS(float, float32)
OF_COLUMNS(double, float64)

extern "C" void exponentials(const float* from, float* to, i64 count) {
  for (i64 i = 0; i < count; i++) to[i] = exponential(from[i]);
}
