// The kernels of rows.cu, and their exponential.

#define ROWS(name, S, R)                                                               \
  STATS(wide, name, S, R, Indices) STATS(lane, name, S, R, Indices)                    \
  GRAD(wide, name, S, R) GRAD(lane, name, S, R)                                        \
  RUN_STRUCT(wide_stats_##name) RUN_STRUCT(lane_stats_##name)                          \
  RUN(wide_grad_##name) RUN(lane_grad_##name)

ROWS(float32, float, float)
ROWS(bfloat16, bfloat16, float)
ROWS(float16, float16, float)
ROWS(float64, double, double)

extern "C" SEEN void exponentials(const float* from, float* to, i64 count) {
  for (i64 i = 0; i < count; i++) to[i] = exponential(from[i]);
}
