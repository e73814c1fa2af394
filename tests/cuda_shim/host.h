// Kernels as functions of a library, run_NAME(blocks, threads, parameters).

#include <utility>

#include "numbers.cu"
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

// A kernel whose parameter is one struct.
template <class T> void launch_struct(void (*kernel)(T), u32 blocks, u32 threads, const void* words) {
  run_grid(blocks, threads, [&] { kernel(*(const T*)words); });
}

#define SEEN __attribute__((visibility("default")))
#define RUN(kernel)                                                                    \
  extern "C" SEEN void run_##kernel(u32 blocks, u32 threads, const Word* words) {           \
    launch(kernel, blocks, threads, words);                                            \
  }
#define RUN_STRUCT(kernel)                                                             \
  extern "C" SEEN void run_##kernel(u32 blocks, u32 threads, const void* words) {           \
    launch_struct(kernel, blocks, threads, words);                                     \
  }
