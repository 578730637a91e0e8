/* Products with matrices of floats, kept row after row as PyTorch keeps them.

   A thread reads one stream, row after row, which is what memory gives fastest; with more vectors the processor's own
   prefetching falls behind, and the rows to come are asked for by hand. Each row meets a tile of vectors, and a block of rows
   stays in the cache while all tiles pass. Each sum is taken in one order: even and odd groups of LANES, then the rest. */

#include "product.h"
#include "simd.h"

#if LANES == 16
#define TILE 8 /* vectors that a row meets at once: two sums for each fit in the registers */
#elif LANES == 8
#define TILE 4
#else
#define TILE 2
#endif
#define BLOCK 16    /* rows that stay in the cache while several tiles pass */
#define ALONE 2     /* vectors up to which nothing is asked for by hand */
#define AHEAD 32768 /* bytes from what is read to what is asked for */

INLINE vec load(int kind, const char *row, int64_t k) {
  if (kind == F32) return LOAD((const float *)row + k);
  if (kind == BF16) return LOAD_BF16((const uint16_t *)row + k);
  return LOAD_F16((const uint16_t *)row + k);
}

INLINE float number(int kind, const char *row, int64_t k) {
  if (kind == F32) return ((const float *)row)[k];
  if (kind == BF16) return from_bf16(((const uint16_t *)row)[k]);
  return from_f16(((const uint16_t *)row)[k]);
}

/* One row times `count` vectors; how many is known when this is compiled. */
INLINE void tile(int kind, const char *w, int64_t in, const float *x, int count, float *y, int64_t y_stride) {
  const int64_t bytes = kind == F32 ? 4 : 2;
  vec even[TILE], odd[TILE];
#pragma GCC unroll 8
  for (int m = 0; m < count; m++) even[m] = ZERO(), odd[m] = ZERO();
  int64_t k = 0;
  for (; k + 2 * LANES <= in; k += 2 * LANES) {
    if (count > ALONE) {
      __builtin_prefetch(w + k * bytes + AHEAD, 0, 2);
      if (2 * LANES * bytes > 64) __builtin_prefetch(w + k * bytes + 64 + AHEAD, 0, 2);
    }
    vec a = load(kind, w, k), b = load(kind, w, k + LANES);
#pragma GCC unroll 8
    for (int m = 0; m < count; m++) {
      even[m] = FMA(a, LOAD(x + m * in + k), even[m]);
      odd[m] = FMA(b, LOAD(x + m * in + k + LANES), odd[m]);
    }
  }
  if (k + LANES <= in) {
    vec a = load(kind, w, k);
#pragma GCC unroll 8
    for (int m = 0; m < count; m++) even[m] = FMA(a, LOAD(x + m * in + k), even[m]);
    k += LANES;
  }
#pragma GCC unroll 8
  for (int m = 0; m < count; m++) {
    float sum = SUM(ADD(even[m], odd[m]));
    for (int64_t i = k; i < in; i++) sum += number(kind, w, i) * x[m * in + i];
    y[m * y_stride] = sum;
  }
}

/* The rows of a range times `count` vectors. */
INLINE void range(int kind, const matrix *w, const float *x, int count, int64_t r0, int64_t r1, float *y,
                  int64_t y_stride) {
  const char *row = (const char *)w->data + r0 * w->stride;
  for (int64_t r = r0; r < r1; r++, row += w->stride) tile(kind, row, w->in, x, count, y + r, y_stride);
}

INLINE void product(int kind, const matrix *w, const float *x, int64_t count, int64_t r0, int64_t r1, float *y,
                    int64_t y_stride) {
  int64_t step = count > TILE ? BLOCK : r1 - r0;
  for (int64_t r = r0; r < r1; r += step) {
    int64_t end = r + step < r1 ? r + step : r1;
    for (int64_t m = 0; m < count; m += TILE) {
      const float *from = x + m * w->in;
      float *to = y + m * y_stride;
#define CASE(n)                                                     \
  case n:                                                           \
    if (n <= TILE) range(kind, w, from, n, r, end, to, y_stride);   \
    break;
      switch (count - m < TILE ? count - m : TILE) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
      }
#undef CASE
    }
  }
}

static void float_row(const matrix *w, int64_t r, float *to) {
  const char *from = (const char *)w->data + r * w->stride;
  for (int64_t k = 0; k < w->in; k++) to[k] = number((int)w->kind, from, k);
}

#define FLOATS(name, kind)                                                                                              \
  static void name##_product(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y,            \
                             int64_t y_stride) {                                                                         \
    product(kind, w, x, count, r0, r1, y, y_stride);                                                                     \
  }                                                                                                                      \
  static const product_kind name = {16, 0, 0, name##_product, float_row};

FLOATS(f32, F32)
FLOATS(bf16, BF16)
FLOATS(f16, F16)

extern const product_kind q8_0_kind, q4_0_kind, q4_1_kind, q4_k_kind, q6_k_kind; /* quant.c */
extern const product_kind int8_kind, nf4_kind, blocks_kind;                       /* stored.c */

const product_kind *const product_kinds[KINDS] = {
    [F32] = &f32,        [BF16] = &bf16,      [F16] = &f16,        [Q8_0] = &q8_0_kind, [Q4_0] = &q4_0_kind,   [Q4_1] = &q4_1_kind,
    [Q4_K] = &q4_k_kind, [Q6_K] = &q6_k_kind, [INT8] = &int8_kind, [NF4] = &nf4_kind,   [BLOCKS] = &blocks_kind,
};
