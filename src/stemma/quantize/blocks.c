/* Products of matrices in GGUF's quantised blocks with a few vectors, and the matrices made whole. native.py compiles
   this file.

   The numbers of a block are those of `stemma.formats.gguf.quants`, which describes the layouts: the same operations in
   the same order. `d`, `dmin`, `m`: scales in half precision. Numbers of few bits are packed in runs of bytes: first
   the lowest bits of each byte of the run, then the next ones, and so on. */

#include <stdint.h>
#include <string.h>

#define SIMD _Pragma("omp simd") /* compilers unroll short loops otherwise */
#define AT_ONCE 1024 /* weights unpacked at a time: they stay in the first cache */

#ifdef __F16C__
#include <immintrin.h>
static inline float half(const uint8_t *p) { return _cvtsh_ss((uint16_t)(p[0] | p[1] << 8)); }
#else
static inline float half(const uint8_t *p) {
  uint32_t h = p[0] | (uint32_t)p[1] << 8, exponent = h >> 10 & 31, digits = h & 0x3ff;
  uint32_t bits = (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | digits << 13;
  float f;
  memcpy(&f, &bits, 4);
  if (exponent == 0) f = digits * 0x1p-24f;
  return h & 0x8000 ? -f : f;
}
#endif

/* ---- 32 weights */

/* The four bits of weights `16 * run + j`, and with the fifth, the bits of `high` in order. */
#define FOUR(codes) ((codes)[j] >> 4 * run & 15)
#define FIVE(codes, high) (FOUR(codes) | (int)(high >> (16 * run + j) & 1) << 4)
#define EACH(number)                                                                                                   \
  for (int run = 0; run < 2; run++)                                                                                    \
    SIMD for (int j = 0; j < 16; j++) w[16 * run + j] = number

static inline void q4_0(const uint8_t *b, float *w) {
  float d = half(b);
  EACH(d * (FOUR(b + 2) - 8));
}

static inline void q4_1(const uint8_t *b, float *w) {
  float d = half(b), m = half(b + 2);
  EACH(d * FOUR(b + 4) + m);
}

static inline uint32_t bits(const uint8_t *p) {
  return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void q5_0(const uint8_t *b, float *w) {
  float d = half(b);
  uint32_t high = bits(b + 2);
  EACH(d * (FIVE(b + 6, high) - 16));
}

static inline void q5_1(const uint8_t *b, float *w) {
  float d = half(b), m = half(b + 2);
  uint32_t high = bits(b + 4);
  EACH(d * FIVE(b + 8, high) + m);
}

static inline void q8_0(const uint8_t *b, float *w) {
  float d = half(b);
  for (int j = 0; j < 32; j++) w[j] = (float)(int8_t)b[2 + j] * d;
}

/* ---- 256 weights in groups of 16 or 32 with small scales of their own */

static inline void q2_k(const uint8_t *b, float *w) {
  float d = half(b + 80), dmin = half(b + 82);
  for (int g = 0; g < 16; g++) {
    float scale = d * (b[g] & 15), least = dmin * (b[g] >> 4);
    const uint8_t *q = b + 16 + g / 8 * 32 + g % 2 * 16;
    SIMD for (int j = 0; j < 16; j++) w[16 * g + j] = scale * (q[j] >> g % 8 / 2 * 2 & 3) - least;
  }
}

static inline void q3_k(const uint8_t *b, float *w) {
  float d = half(b + 108);
  for (int g = 0; g < 16; g++) {
    int six = (b[96 + g % 8] >> g / 8 * 4 & 15) | (b[104 + g % 4] >> g / 4 * 2 & 3) << 4;
    float scale = d * (six - 32);
    const uint8_t *high = b + g % 2 * 16, *q = b + 32 + g / 8 * 32 + g % 2 * 16;
    SIMD for (int j = 0; j < 16; j++)
      w[16 * g + j] = scale * ((q[j] >> g % 8 / 2 * 2 & 3) + 4 * (high[j] >> g / 2 & 1) - 4);
  }
}

static inline void scale_and_least(const uint8_t *s, int g, int *scale, int *least) { /* eight of both in twelve bytes */
  int i = g % 4;
  *scale = g < 4 ? s[i] & 63 : (s[8 + i] & 15) | s[i] >> 6 << 4;
  *least = g < 4 ? s[4 + i] & 63 : s[8 + i] >> 4 | s[4 + i] >> 6 << 4;
}

static inline void q4_k(const uint8_t *b, float *w) {
  float d = half(b), dmin = half(b + 2);
  for (int g = 0; g < 8; g++) {
    int small, low;
    scale_and_least(b + 4, g, &small, &low);
    float scale = d * small, least = dmin * low;
    const uint8_t *q = b + 16 + g / 2 * 32;
    SIMD for (int j = 0; j < 32; j++) w[32 * g + j] = scale * (q[j] >> g % 2 * 4 & 15) - least;
  }
}

static inline void q5_k(const uint8_t *b, float *w) {
  float d = half(b), dmin = half(b + 2);
  for (int g = 0; g < 8; g++) {
    int small, low;
    scale_and_least(b + 4, g, &small, &low);
    float scale = d * small, least = dmin * low;
    const uint8_t *high = b + 16, *q = b + 48 + g / 2 * 32;
    SIMD for (int j = 0; j < 32; j++) w[32 * g + j] = scale * ((q[j] >> g % 2 * 4 & 15) | (high[j] >> g & 1) << 4) - least;
  }
}

static inline void q6_k(const uint8_t *b, float *w) {
  float d = half(b + 208);
  for (int g = 0; g < 16; g++) {
    float scale = d * (float)(int8_t)b[192 + g];
    const uint8_t *low = b + g / 8 * 64 + g % 4 * 16, *high = b + 128 + g / 8 * 32 + g % 2 * 16;
    SIMD for (int j = 0; j < 16; j++)
      w[16 * g + j] = scale * (((low[j] >> g % 8 / 4 * 4 & 15) | (high[j] >> g % 8 / 2 * 2 & 3) << 4) - 32);
  }
}

/* ---- rows of blocks */

/* The place of a type in native.BLOCKS, weights in a block, bytes of it, its name. */
#define KINDS(_)                                                                                                       \
  _(0, 32, 18, q4_0) _(1, 32, 20, q4_1) _(2, 32, 22, q5_0) _(3, 32, 24, q5_1) _(4, 32, 34, q8_0)                       \
  _(5, 256, 84, q2_k) _(6, 256, 110, q3_k) _(7, 256, 144, q4_k) _(8, 256, 176, q5_k) _(9, 256, 210, q6_k)

/* The `n` weights, in whole blocks, of the bytes from `at`. Returns the number of bytes. */
static inline int64_t unpack(int kind, const uint8_t *at, int64_t n, float *w) {
  switch (kind) {
#define CASE(number, weights, bytes, name)                                                                             \
  case number:                                                                                                         \
    for (int64_t i = 0; i < n; i += weights) name(at + i / weights * bytes, w + i);                                    \
    return n / weights * bytes;
    KINDS(CASE)
#undef CASE
  }
  return 0;
}

/* ---- packed rows: the bytes of 16 rows in the order of packing.py */

typedef struct {
  int start, bytes, unit, flip;
} field;

static const field FIELDS[10][4] = {
    [0] = {{2, 16, 4, 0}, {0, 2, 2, 0}},
    [1] = {{4, 16, 4, 0}, {0, 2, 2, 0}, {2, 2, 2, 0}},
    [4] = {{2, 32, 4, 128}, {0, 2, 2, 0}},
    [7] = {{0, 2, 2, 0}, {2, 2, 2, 0}, {4, 12, 1, 0}, {16, 128, 4, 0}},
    [9] = {{0, 128, 4, 0}, {128, 64, 4, 0}, {192, 16, 1, 0}, {208, 2, 2, 0}},
};

/* One block of row `lane`, as a file has it, from the blocks of one place. Returns the bytes that these take. */
static inline int64_t loosen(int kind, const uint8_t *at, int64_t lane, uint8_t *block) {
  int64_t size = 0;
  for (const field *f = FIELDS[kind]; f < FIELDS[kind] + 4; f++) {
    for (int64_t u = 0; u < f->bytes; u += f->unit) memcpy(block + f->start + u, at + size + 16 * u + lane * f->unit, f->unit);
    for (int64_t i = 0; i < (f->flip ? f->bytes : 0); i++) block[f->start + i] ^= (uint8_t)f->flip;
    size += 16 * f->bytes;
  }
  return size;
}

/* The `n` weights, in whole blocks, of a row that is packed with others, from the blocks at `at`. Returns their bytes. */
static inline int64_t unpack_lane(int kind, const uint8_t *at, int64_t lane, int64_t n, float *w) {
  int64_t width = kind < 5 ? 32 : 256, bytes = 0;
  for (int64_t k = 0; k < n; k += width) {
    uint8_t block[256];
    bytes += loosen(kind, at + bytes, lane, block);
    unpack(kind, block, width, w + k);
  }
  return bytes;
}

/* ---- matrices */

/* Adds the product of `some` weights with as many entries of each vector. */
static inline void add_part(const float *w, const float *x, int64_t some, int64_t rows, int64_t in, float *y, int64_t out) {
  for (int64_t m = 0; m < rows; m++) {
    const float *v = x + m * in;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < some; i++) sum += v[i] * w[i];
    y[m * out] += sum;
  }
}

/* y = x w^T for rows of `bytes` bytes. */
void blocks_product(int kind, const uint8_t *codes, int64_t bytes, const float *x, float *y, int64_t rows, int64_t out,
                    int64_t in, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < out; n++) {
    const uint8_t *at = codes + n * bytes;
    for (int64_t m = 0; m < rows; m++) y[m * out + n] = 0;
    for (int64_t k = 0; k < in; k += AT_ONCE) {
      float w[AT_ONCE];
      int64_t some = in - k < AT_ONCE ? in - k : AT_ONCE;
      at += unpack(kind, at, some, w);
      add_part(w, x + k, some, rows, in, y + n, out);
    }
  }
}

/* The weights: each row of `bytes` bytes is one of `in` numbers. */
void blocks_weights(int kind, const uint8_t *codes, int64_t bytes, float *y, int64_t out, int64_t in, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < out; n++) unpack(kind, codes + n * bytes, in, y + n * in);
}

/* y = x w^T for packed rows of `bytes` bytes each. */
void packed_product(int kind, const uint8_t *codes, int64_t bytes, const float *x, float *y, int64_t rows, int64_t out,
                    int64_t in, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < out; n++) {
    const uint8_t *at = codes + n / 16 * 16 * bytes;
    for (int64_t m = 0; m < rows; m++) y[m * out + n] = 0;
    for (int64_t k = 0; k < in; k += AT_ONCE) {
      float w[AT_ONCE];
      int64_t some = in - k < AT_ONCE ? in - k : AT_ONCE;
      at += unpack_lane(kind, at, n % 16, some, w);
      add_part(w, x + k, some, rows, in, y + n, out);
    }
  }
}

/* The weights of packed rows. */
void packed_weights(int kind, const uint8_t *codes, int64_t bytes, float *y, int64_t out, int64_t in, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < out; n++) unpack_lane(kind, codes + n / 16 * 16 * bytes, n % 16, in, y + n * in);
}
