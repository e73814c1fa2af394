// The kernels of rows.cu, and their exponential.

#define ROWS(name, S, R)                                                               \
  STATS(wide, name, S, R) STATS(lane, name, S, R)                                      \
  GRAD(wide, name, S, R) GRAD(lane, name, S, R)                                        \
  RUN(wide_stats_##name) RUN(lane_stats_##name) RUN(wide_grad_##name) RUN(lane_grad_##name)

ROWS(float32, float, float)
ROWS(bfloat16, bfloat16, float)
ROWS(float16, float16, float)
ROWS(float64, double, double)

extern "C" void exponentials(const float* from, float* to, i64 count) {
  for (i64 i = 0; i < count; i++) to[i] = exponential(from[i]);
}
