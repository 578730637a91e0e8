/* Products with matrices of floats, kept row after row as PyTorch keeps them.

   A thread reads one stream, row after row, which is what memory gives fastest; with more vectors the processor's own
   prefetching falls behind, and the rows to come are asked for by hand. Each row meets a tile of vectors, and a block of rows
   stays in the cache while all tiles pass. Each sum is taken in one order: even and odd groups of LANES, then the rest. */

#include "product.h"
#include "simd.h"

#define TILE 4     /* vectors that a row meets at once: they fit in the first cache, their sums in registers */
#define BLOCK 16   /* rows that stay in the cache while several tiles pass */
#define ALONE 2    /* vectors up to which nothing is asked for by hand */
#define AHEAD 8192 /* bytes from what is read to what is asked for */

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
#pragma GCC unroll 4
  for (int m = 0; m < count; m++) even[m] = ZERO(), odd[m] = ZERO();
  int64_t k = 0;
  for (; k + 2 * LANES <= in; k += 2 * LANES) {
    if (count > ALONE) {
      __builtin_prefetch(w + k * bytes + AHEAD, 0, 2);
      if (2 * LANES * bytes > 64) __builtin_prefetch(w + k * bytes + 64 + AHEAD, 0, 2);
    }
    vec a = load(kind, w, k), b = load(kind, w, k + LANES);
#pragma GCC unroll 4
    for (int m = 0; m < count; m++) {
      even[m] = FMA(a, LOAD(x + m * in + k), even[m]);
      odd[m] = FMA(b, LOAD(x + m * in + k + LANES), odd[m]);
    }
  }
  if (k + LANES <= in) {
    vec a = load(kind, w, k);
#pragma GCC unroll 4
    for (int m = 0; m < count; m++) even[m] = FMA(a, LOAD(x + m * in + k), even[m]);
    k += LANES;
  }
#pragma GCC unroll 4
  for (int m = 0; m < count; m++) {
    float sum = SUM(ADD(even[m], odd[m]));
    for (int64_t i = k; i < in; i++) sum += number(kind, w, i) * x[m * in + i];
    y[m * y_stride] = sum;
  }
}

#if defined(__AVX512BF16__) && LANES == 16
#define PAIRS /* bf16 times bf16: vectors are rounded to bf16, as PyTorch's are, and pairs are multiplied at once */

static int64_t pairs_bytes(int64_t in) { return (in * 2 + 63) / 64 * 64; }

static void to_pairs(const float *x, int64_t in, void *to) {
  for (int64_t i = 0; i < in; i++) ((uint16_t *)to)[i] = to_bf16(x[i]);
}

INLINE __m512bh load_pairs(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }

INLINE void tile_of_pairs(const char *row, int64_t in, const char *x, int count, float *y, int64_t y_stride) {
  const uint16_t *w = (const uint16_t *)row, *v[TILE];
  vec even[TILE], odd[TILE];
#pragma GCC unroll 4
  for (int m = 0; m < count; m++) {
    even[m] = ZERO(), odd[m] = ZERO();
    v[m] = (const uint16_t *)(x + m * pairs_bytes(in));
  }
  int64_t k = 0;
  for (; k + 64 <= in; k += 64) {
    if (count > ALONE) {
      __builtin_prefetch(row + 2 * k + AHEAD, 0, 2);
      __builtin_prefetch(row + 2 * k + 64 + AHEAD, 0, 2);
    }
    __m512bh a = load_pairs(w + k), b = load_pairs(w + k + 32);
#pragma GCC unroll 4
    for (int m = 0; m < count; m++) {
      even[m] = _mm512_dpbf16_ps(even[m], a, load_pairs(v[m] + k));
      odd[m] = _mm512_dpbf16_ps(odd[m], b, load_pairs(v[m] + k + 32));
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < count; m++) {
    float sum = SUM(ADD(even[m], odd[m]));
    for (int64_t i = k; i < in; i++) sum += from_bf16(w[i]) * from_bf16(v[m][i]);
    y[m * y_stride] = sum;
  }
}
#endif

/* The rows of a range times `count` vectors. */
INLINE void range(int kind, const matrix *w, const void *x, int count, int64_t r0, int64_t r1, float *y, int64_t y_stride) {
  const char *row = (const char *)w->data + r0 * w->stride;
  for (int64_t r = r0; r < r1; r++, row += w->stride) {
#ifdef PAIRS
    if (kind == BF16) tile_of_pairs(row, w->in, x, count, y + r, y_stride);
    else
#endif
      tile(kind, row, w->in, x, count, y + r, y_stride);
  }
}

/* `bytes`: from one vector to the next. */
INLINE void product(int kind, const matrix *w, const char *x, int64_t bytes, int64_t count, int64_t r0, int64_t r1,
                    float *y, int64_t y_stride) {
  int64_t step = count > TILE ? BLOCK : r1 - r0;
  for (int64_t r = r0; r < r1; r += step) {
    int64_t end = r + step < r1 ? r + step : r1;
    for (int64_t m = 0; m < count; m += TILE) {
      const char *from = x + m * bytes;
      float *to = y + m * y_stride;
      switch (count - m) {
        case 1: range(kind, w, from, 1, r, end, to, y_stride); break;
        case 2: range(kind, w, from, 2, r, end, to, y_stride); break;
        case 3: range(kind, w, from, 3, r, end, to, y_stride); break;
        default: range(kind, w, from, 4, r, end, to, y_stride);
      }
    }
  }
}

static void float_row(const matrix *w, int64_t r, float *to) {
  const char *from = (const char *)w->data + r * w->stride;
  for (int64_t k = 0; k < w->in; k++) to[k] = number((int)w->kind, from, k);
}

extern const panel_kind float_panels, pair_panels; /* panels.c */

#define FLOATS(name, kind, bytes, form, prepare, panels)                                                                \
  static void name##_product(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y,            \
                             int64_t y_stride) {                                                                         \
    product(kind, w, x, bytes, count, r0, r1, y, y_stride);                                                              \
  }                                                                                                                      \
  static const product_kind name = {16, form, prepare, name##_product, float_row, panels};

FLOATS(f32, F32, 4 * w->in, 0, 0, &float_panels)
FLOATS(f16, F16, 4 * w->in, 0, 0, 0)
#ifdef PAIRS
FLOATS(bf16, BF16, pairs_bytes(w->in), pairs_bytes, to_pairs, &pair_panels)
#else
FLOATS(bf16, BF16, 4 * w->in, 0, 0, 0)
#endif

extern const product_kind q8_0_kind, q4_0_kind, q4_1_kind, q4_k_kind, q6_k_kind; /* quant.c */
extern const product_kind int8_kind, nf4_kind, blocks_kind;                       /* stored.c */

const product_kind *const product_kinds[KINDS] = {
    [F32] = &f32,        [BF16] = &bf16,      [F16] = &f16,        [Q8_0] = &q8_0_kind, [Q4_0] = &q4_0_kind,   [Q4_1] = &q4_1_kind,
    [Q4_K] = &q4_k_kind, [Q6_K] = &q6_k_kind, [INT8] = &int8_kind, [NF4] = &nf4_kind,   [BLOCKS] = &blocks_kind,
};
