/* Products with matrices of floats, kept row after row as PyTorch keeps them.

   Few vectors: a thread reads one stream, row after row, which is what memory gives fastest. More vectors: pairs of rows
   times tiles of vectors, and blocks of rows that stay in the cache while all vectors pass. Each sum is taken in one order:
   even and odd groups of LANES, then the rest. */

#include "product.h"
#include "simd.h"

#if LANES == 16
#define TILE 6 /* vectors of a tile: 2 rows x 6 vectors x 2 sums fill the registers */
#elif LANES == 8
#define TILE 3
#else
#define TILE 2
#endif
#define ALONE 2    /* vectors up to which rows are read one at a time */
#define BLOCK 16   /* rows that stay in the cache while several tiles of vectors pass */

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

/* `rows` rows times `count` vectors, both known when this is compiled. */
INLINE void tile(int kind, const char *w, int64_t stride, int64_t in, const float *x, int rows, int count, float *y,
                 int64_t y_stride) {
  vec even[2][TILE], odd[2][TILE];
  for (int r = 0; r < rows; r++)
    for (int m = 0; m < count; m++) even[r][m] = ZERO(), odd[r][m] = ZERO();
  int64_t k = 0;
  for (; k + 2 * LANES <= in; k += 2 * LANES) {
    vec a[2], b[2];
    for (int r = 0; r < rows; r++) a[r] = load(kind, w + r * stride, k), b[r] = load(kind, w + r * stride, k + LANES);
    for (int m = 0; m < count; m++) {
      vec first = LOAD(x + m * in + k), second = LOAD(x + m * in + k + LANES);
      for (int r = 0; r < rows; r++) {
        even[r][m] = FMA(a[r], first, even[r][m]);
        odd[r][m] = FMA(b[r], second, odd[r][m]);
      }
    }
  }
  if (k + LANES <= in) {
    for (int r = 0; r < rows; r++) {
      vec a = load(kind, w + r * stride, k);
      for (int m = 0; m < count; m++) even[r][m] = FMA(a, LOAD(x + m * in + k), even[r][m]);
    }
    k += LANES;
  }
  for (int r = 0; r < rows; r++)
    for (int m = 0; m < count; m++) {
      float sum = SUM(ADD(even[r][m], odd[r][m]));
      for (int64_t i = k; i < in; i++) sum += number(kind, w + r * stride, i) * x[m * in + i];
      y[m * y_stride + r] = sum;
    }
}

/* All rows of a range times `count` vectors. */
INLINE void range(int kind, const matrix *w, const float *x, int count, int64_t r0, int64_t r1, float *y,
                  int64_t y_stride) {
  const char *data = w->data;
  int64_t r = r0;
  if (count > ALONE)
    for (; r + 2 <= r1; r += 2) tile(kind, data + r * w->stride, w->stride, w->in, x, 2, count, y + r, y_stride);
  for (; r < r1; r++) tile(kind, data + r * w->stride, w->stride, w->in, x, 1, count, y + r, y_stride);
}

INLINE void product(int kind, const matrix *w, const float *x, int64_t count, int64_t r0, int64_t r1, float *y,
                    int64_t y_stride) {
  int64_t step = count > TILE ? BLOCK : r1 - r0;
  for (int64_t r = r0; r < r1; r += step) {
    int64_t end = r + step < r1 ? r + step : r1;
    for (int64_t m = 0; m < count; m += TILE) {
      const float *from = x + m * w->in;
      float *to = y + m * y_stride;
      switch (count - m) {
        case 1: range(kind, w, from, 1, r, end, to, y_stride); break;
        case 2: range(kind, w, from, 2, r, end, to, y_stride); break;
#if TILE > 2
        case 3: range(kind, w, from, 3, r, end, to, y_stride); break;
#endif
#if TILE > 3
        case 4: range(kind, w, from, 4, r, end, to, y_stride); break;
        case 5: range(kind, w, from, 5, r, end, to, y_stride); break;
#endif
        default: range(kind, w, from, TILE, r, end, to, y_stride);
      }
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
