/* Products of many vectors at once, as a prompt has them.

   Vectors lie in panels of PANEL, number after number: the first numbers of all vectors of a panel, then the second, and so
   on. HIGH rows of a matrix, read where they lie, meet ACROSS registers of a panel; a block of rows stays in the cache while
   all panels pass. Each sum goes from the first number to the last, whoever the neighbours are. */

#include "panels.h"

#define BLOCK 64 /* rows that stay in the cache while all panels pass */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Vectors of a panel that begins with vector `m`, and what it is wide: whole registers. */
static int64_t panel_count(int64_t count, int64_t m) { return smaller(count - m, PANEL); }
static int64_t panel_width(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* out[r][v] = sum over k of w[r][k] * x[k][v], for `high` rows and `wide` registers; how many is known when this is
   compiled. Strides are numbers. */
INLINE void tile(int high, int wide, const float *w, int64_t w_stride, int64_t in, const float *x, int64_t x_stride,
                 float *out, int64_t out_stride) {
  vec sum[HIGH][ACROSS];
#pragma GCC unroll 8
  for (int r = 0; r < high; r++)
#pragma GCC unroll 3
    for (int v = 0; v < wide; v++) sum[r][v] = ZERO();
#pragma GCC unroll 2
  for (int64_t k = 0; k < in; k++, x += x_stride) {
    vec some[ACROSS];
#pragma GCC unroll 3
    for (int v = 0; v < wide; v++) some[v] = LOAD(x + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < high; r++) {
      vec one = SPREAD(w[r * w_stride + k]);
#pragma GCC unroll 3
      for (int v = 0; v < wide; v++) sum[r][v] = FMA(one, some[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < high; r++)
#pragma GCC unroll 3
    for (int v = 0; v < wide; v++) STORE(out + r * out_stride + v * LANES, sum[r][v]);
}

#define TILE(high, wide)                                                                                              \
  static void tile_##high##_##wide(const float *w, int64_t w_stride, int64_t in, const float *x, int64_t x_stride,     \
                                   float *out, int64_t out_stride) {                                                   \
    tile(high, wide, w, w_stride, in, x, x_stride, out, out_stride);                                                   \
  }
#define TILES(high) TILE(high, 1) TILE(high, 2) TILE(high, 3)
TILES(1) TILES(2) TILES(4)
#if HIGH == 8
TILES(8)
#endif

typedef void (*tile_function)(const float *, int64_t, int64_t, const float *, int64_t, float *, int64_t);
#define ALL(high) {tile_##high##_1, tile_##high##_2, tile_##high##_3}
static const tile_function TILES_OF[][ACROSS] = {ALL(1), ALL(2), ALL(4),
#if HIGH == 8
                                               ALL(8)
#endif
};

INLINE int size_of(int64_t rows) { return rows >= 8 && HIGH == 8 ? 3 : rows >= 4 ? 2 : rows >= 2 ? 1 : 0; }

void times_panel(int64_t rows, int64_t width, const float *w, int64_t w_stride, int64_t in, const float *x,
                 int64_t x_stride, float *out, int64_t out_stride) {
  for (int64_t r = 0; r < rows;) {
    int size = size_of(rows - r);
    for (int64_t v = 0, wide; v < width; v += wide * LANES) {
      int64_t left = (width - v) / LANES;
      wide = left == 4 ? 2 : smaller(left, ACROSS); /* two and two are faster than three and one */
      TILES_OF[size][wide - 1](w + r * w_stride, w_stride, in, x + v, x_stride, out + r * out_stride + v, out_stride);
    }
    r += 1 << size;
  }
}

#if LANES == 16
/* Sixteen vectors of sixteen numbers, turned over. */
INLINE void turn_over(const float *from, int64_t stride, float *to, int64_t to_stride) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#define PAIRS_OF(p, q, odd) _mm512_castpd_ps(_mm512_unpack##odd##_pd(_mm512_castps_pd(p), _mm512_castps_pd(q)))
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = PAIRS_OF(b[i], b[i + 2], lo), a[i + 1] = PAIRS_OF(b[i], b[i + 2], hi);
    a[i + 2] = PAIRS_OF(b[i + 1], b[i + 3], lo), a[i + 3] = PAIRS_OF(b[i + 1], b[i + 3], hi);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88), b[4 + i] = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd);
    b[8 + i] = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88), b[12 + i] = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_ps(to + i * to_stride, _mm512_shuffle_f32x4(b[i], b[8 + i], 0x88));
    _mm512_storeu_ps(to + (4 + i) * to_stride, _mm512_shuffle_f32x4(b[4 + i], b[12 + i], 0x88));
    _mm512_storeu_ps(to + (8 + i) * to_stride, _mm512_shuffle_f32x4(b[i], b[8 + i], 0xdd));
    _mm512_storeu_ps(to + (12 + i) * to_stride, _mm512_shuffle_f32x4(b[4 + i], b[12 + i], 0xdd));
  }
}
#endif

void to_panel(const float *x, int64_t stride, int64_t in, int64_t count, float *to) {
  int64_t width = panel_width(count), m = 0;
#if LANES == 16
  for (; m + 16 <= count; m += 16) {
    int64_t k = 0;
    for (; k + 16 <= in; k += 16) turn_over(x + m * stride + k, stride, to + k * width + m, width);
    for (; k < in; k++)
      for (int i = 0; i < 16; i++) to[k * width + m + i] = x[(m + i) * stride + k];
  }
#endif
  for (; m < width; m++)
    for (int64_t k = 0; k < in; k++) to[k * width + m] = m < count ? x[m * stride + k] : 0;
}

static int64_t float_bytes(int64_t in) { return PANEL * in * (int64_t)sizeof(float); }

static void float_panel(const float *x, int64_t in, int64_t count, void *to) { to_panel(x, in, in, count, to); }

/* A tile's sums (rows x vectors) into y, where vectors stand one after the other. */
static void put(const float *sums, int64_t rows, int64_t count, float *y, int64_t y_stride) {
  for (int64_t m = 0; m < count; m++)
    for (int64_t r = 0; r < rows; r++) y[m * y_stride + r] = sums[r * PANEL + m];
}

static void float_product(const matrix *w, const void *panels, int64_t count, int64_t r0, int64_t r1, float *y,
                          int64_t y_stride) {
  float sums[HIGH * PANEL];
  int64_t stride = w->stride / (int64_t)sizeof(float);
  for (int64_t block = r0; block < r1; block += BLOCK)
    for (int64_t m = 0; m < count; m += PANEL) {
      int64_t some = panel_count(count, m), width = panel_width(some);
      const float *x = (const float *)panels + m * w->in;
      for (int64_t r = block; r < smaller(block + BLOCK, r1); r += HIGH) {
        int64_t rows = smaller(HIGH, smaller(block + BLOCK, r1) - r);
        times_panel(rows, width, (const float *)w->data + r * stride, stride, w->in, x, width, sums, PANEL);
        put(sums, rows, some, y + m * y_stride + r, y_stride);
      }
    }
}

const panel_kind float_panels = {float_bytes, float_panel, float_product};

#if defined(__AVX512BF16__) && LANES == 16
/* bf16 times bf16: a number of a panel is a pair, of two that follow each other. */

INLINE void tile_of_pairs(int high, int wide, const char *w, int64_t w_stride, int64_t pairs, const uint32_t *x,
                          int64_t x_stride, float *out) {
  vec sum[HIGH][ACROSS];
#pragma GCC unroll 8
  for (int r = 0; r < high; r++)
#pragma GCC unroll 3
    for (int v = 0; v < wide; v++) sum[r][v] = ZERO();
#pragma GCC unroll 2
  for (int64_t k = 0; k < pairs; k++, x += x_stride) {
    __m512bh some[ACROSS];
#pragma GCC unroll 3
    for (int v = 0; v < wide; v++) some[v] = (__m512bh)_mm512_loadu_si512(x + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < high; r++) {
      int32_t pair;
      memcpy(&pair, w + r * w_stride + 4 * k, 4);
      __m512bh one = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 3
      for (int v = 0; v < wide; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], one, some[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < high; r++)
#pragma GCC unroll 3
    for (int v = 0; v < wide; v++) STORE(out + r * PANEL + v * LANES, sum[r][v]);
}

#define TILE_OF_PAIRS(high, wide)                                                                                      \
  static void pairs_##high##_##wide(const char *w, int64_t w_stride, int64_t pairs, const uint32_t *x,                  \
                                    int64_t x_stride, float *out) {                                                     \
    tile_of_pairs(high, wide, w, w_stride, pairs, x, x_stride, out);                                                    \
  }
TILE_OF_PAIRS(1, 1) TILE_OF_PAIRS(1, 2) TILE_OF_PAIRS(1, 3) TILE_OF_PAIRS(8, 1) TILE_OF_PAIRS(8, 2) TILE_OF_PAIRS(8, 3)

typedef void (*pairs_function)(const char *, int64_t, int64_t, const uint32_t *, int64_t, float *);
static const pairs_function PAIRS_OF_ROWS[2][ACROSS] = {{pairs_1_1, pairs_1_2, pairs_1_3}, {pairs_8_1, pairs_8_2, pairs_8_3}};

static int64_t pair_bytes(int64_t in) { return in % 2 ? 0 : PANEL * in * 2; }

static void pair_panel(const float *x, int64_t in, int64_t count, void *to) {
  int64_t width = panel_width(count);
  uint32_t *pair = to;
  for (int64_t first = 0; first < in; first += 32) { /* so many numbers at once fit on the stack */
    float some[32 * PANEL];
    int64_t here = smaller(32, in - first);
    to_panel(x + first, in, here, count, some);
    for (int64_t k = 0; k < here; k += 2, pair += width)
      for (int64_t m = 0; m < width; m++)
        pair[m] = to_bf16(some[k * width + m]) | (uint32_t)to_bf16(some[(k + 1) * width + m]) << 16;
  }
}

static void pair_product(const matrix *w, const void *panels, int64_t count, int64_t r0, int64_t r1, float *y,
                         int64_t y_stride) {
  float sums[HIGH * PANEL];
  for (int64_t block = r0; block < r1; block += 2 * BLOCK)
    for (int64_t m = 0; m < count; m += PANEL) {
      int64_t some = panel_count(count, m), width = panel_width(some), end = smaller(block + 2 * BLOCK, r1);
      const uint32_t *x = (const uint32_t *)panels + m * w->in / 2;
      for (int64_t r = block, rows; r < end; r += rows) {
        rows = end - r >= HIGH ? HIGH : 1;
        const char *from = (const char *)w->data + r * w->stride;
        PAIRS_OF_ROWS[rows > 1][width / LANES - 1](from, w->stride, w->in / 2, x, width, sums);
        put(sums, rows, some, y + m * y_stride + r, y_stride);
      }
    }
}

const panel_kind pair_panels = {pair_bytes, pair_panel, pair_product};
#endif
