/* Products of quantised matrices with a few vectors, and NF4 matrices made whole. native.py compiles this file.

   NF4: a byte holds two weights, the first in its high half. `levels` has the 16 numbers of a code. The scale of block b is
   absmax[b], or with double quantisation nested[codes8[b]] * absmax2[b / 256] + offset, rounded after each operation. */

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
typedef __m512 vec;
#define ZERO() _mm512_setzero_ps()
#define LOAD(p) _mm512_loadu_ps(p)
#define SPREAD(x) _mm512_set1_ps(x)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define SUM(v) _mm512_reduce_add_ps(v)
static inline void decode(const float *levels, const uint8_t *codes, vec *high, vec *low) {
  __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
  vec table = LOAD(levels); /* a look-up reads the last four bits of each index */
  *high = _mm512_permutexvar_ps(_mm512_srli_epi32(byte, 4), table);
  *low = _mm512_permutexvar_ps(byte, table);
}
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
typedef __m256 vec;
#define ZERO() _mm256_setzero_ps()
#define LOAD(p) _mm256_loadu_ps(p)
#define SPREAD(x) _mm256_set1_ps(x)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
static inline float SUM(vec v) {
  float part[8], sum = 0;
  _mm256_storeu_ps(part, v);
  for (int i = 0; i < 8; i++) sum += part[i];
  return sum;
}
static inline vec look(const float *levels, __m256i index) { /* bit 3 chooses the half of the table */
  vec below = _mm256_permutevar8x32_ps(LOAD(levels), index), above = _mm256_permutevar8x32_ps(LOAD(levels + 8), index);
  return _mm256_blendv_ps(below, above, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
static inline void decode(const float *levels, const uint8_t *codes, vec *high, vec *low) {
  __m256i byte = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
  *high = look(levels, _mm256_srli_epi32(byte, 4));
  *low = look(levels, byte);
}
#else
#define LANES 1
typedef float vec;
#define ZERO() 0.0f
#define LOAD(p) (*(p))
#define SPREAD(x) (x)
#define FMA(a, b, c) ((a) * (b) + (c))
#define SUM(v) (v)
static inline void decode(const float *levels, const uint8_t *codes, vec *high, vec *low) {
  *high = levels[*codes >> 4];
  *low = levels[*codes & 15];
}
#endif

typedef struct {
  const uint8_t *codes;
  const float *levels, *absmax; /* absmax: without double quantisation */
  const uint8_t *codes8;
  const float *nested, *absmax2, *offset;
  int64_t block;
} weights;

static inline float scale_of(const weights *w, int64_t b) {
  if (w->absmax) return w->absmax[b];
  return w->nested[w->codes8[b]] * w->absmax2[b >> 8] + *w->offset;
}

/* One row of the matrix times `count` vectors. x: for each its even entries, then its odd ones. */
static inline __attribute__((always_inline)) void
row(const weights *w, int64_t first, int64_t in, const float *x, int count, float *y, int64_t out) {
  int64_t half = in / 2;
  vec sum[4];
  for (int m = 0; m < count; m++) sum[m] = ZERO();
  for (int64_t at = 0; at < half; at += w->block / 2) {
    vec part[4], high, low;
    for (int m = 0; m < count; m++) part[m] = ZERO();
    for (int64_t i = at; i < at + w->block / 2; i += LANES) {
      decode(w->levels, w->codes + first * half + i, &high, &low);
      for (int m = 0; m < count; m++)
        part[m] = FMA(low, LOAD(x + m * in + half + i), FMA(high, LOAD(x + m * in + i), part[m]));
    }
    vec scale = SPREAD(scale_of(w, (first * in + 2 * at) / w->block));
    for (int m = 0; m < count; m++) sum[m] = FMA(part[m], scale, sum[m]);
  }
  for (int m = 0; m < count; m++) y[m * out] = SUM(sum[m]);
}

/* y = x w^T: `rows` vectors, w of out times in. */
void nf4_product(const weights *w, const float *x, float *y, int64_t rows, int64_t out, int64_t in, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < out; n++) {
    int64_t m = 0;
    for (; m + 4 <= rows; m += 4) row(w, n, in, x + m * in, 4, y + m * out + n, out);
    for (; m < rows; m++) row(w, n, in, x + m * in, 1, y + m * out + n, out);
  }
}

/* y = x w^T for w = scale * codes, a scale for each row. */
void int8_product(const int8_t *codes, const float *scale, const float *x, float *y, int64_t rows, int64_t out,
                  int64_t in, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < out; n++)
    for (int64_t m = 0; m < rows; m++) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < in; k++) sum += x[m * in + k] * codes[n * in + k];
      y[m * out + n] = sum * scale[n];
    }
}

/* The weights, in whole blocks. */
void nf4_weights(const weights *w, float *y, int64_t blocks, int threads) {
  float pairs[256][2];
  for (int i = 0; i < 256; i++) pairs[i][0] = w->levels[i >> 4], pairs[i][1] = w->levels[i & 15];
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t b = 0; b < blocks; b++) {
    float scale = scale_of(w, b);
    const uint8_t *codes = w->codes + b * w->block / 2;
    float *to = y + b * w->block;
    for (int64_t i = 0; i < w->block / 2; i++) {
      to[2 * i] = pairs[codes[i]][0] * scale;
      to[2 * i + 1] = pairs[codes[i]][1] * scale;
    }
  }
}
