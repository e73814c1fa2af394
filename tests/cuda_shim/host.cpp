// The kernels of rows.cu as functions of a library, run_NAME(blocks, threads, arguments), and their
// exponential.

#include <utility>

#include "rows.cu"
#include "columns.cu"

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

#define RUN(kernel)                                                                    \
  extern "C" void run_##kernel(u32 blocks, u32 threads, const Word* words) {           \
    launch(kernel, blocks, threads, words);                                            \
  }
#define RUN_ALL(name) \
  RUN(wide_stats_##name) RUN(lane_stats_##name) RUN(wide_grad_##name) RUN(lane_grad_##name)

RUN_ALL(float32)
RUN_ALL(bfloat16)
RUN_ALL(float16)
RUN_ALL(float64)
RUN(columns_float32)
RUN(columns_float64)

extern "C" void exponentials(const float* from, float* to, i64 count) {
  for (i64 i = 0; i < count; i++) to[i] = exponential(from[i]);
}
