/* Products with matrices in the blocks of GGUF files (Q8_0, Q4_0, Q4_1, Q4_K, Q6_K), packed 16 rows together, and vectors
   in 8 bits.

   A packed matrix has the bytes of the file's blocks in another order (packing.py): the blocks of one place in 16 rows
   are together, and of each field first the first unit of all 16 rows, then the second, and so on. Units are four bytes
   of codes, or a whole scale. Codes of Q8_0 are 128 higher, without a sign. Rows that are missing at the end are zero.

   A vector has int8 numbers in groups of 32 with a scale a group, `max |x| / 127`, and the sums of their halves. A group
   times a vector is exact in integers; then fp32 sums go from the first group to the last. */

#include "lanes.h"
#include "product.h"

#define GROUP 32 /* entries of a vector with one scale */
#define FAR 8192 /* bytes from a block of 256 columns to what is asked for: so much work hides the next one */
#define ROWS 16  /* rows of a matrix that are packed together */

/* ---- vectors */

typedef struct { /* one group of a vector */
  int8_t entry[GROUP];
  float scale;
  int32_t sum[2]; /* of each half */
} part;

static int64_t prepared(int64_t in) { return (in / GROUP * (int64_t)sizeof(part) + 63) / 64 * 64; }

static void prepare(const float *x, int64_t in, void *to) {
  part *p = to;
  for (int64_t g = 0; g < in / GROUP; g++, p++, x += GROUP) {
    int32_t most = 0; /* the bits of |x| are in the order of the numbers, and those of nan above all */
    for (int i = 0; i < GROUP; i++) {
      int32_t bits = (int32_t)(float_bits(x[i]) & 0x7fffffffu);
      most = bits > most ? bits : most;
    }
    float largest = bits_float((uint32_t)most), steps = most > 0 ? 127 / largest : 0;
    int32_t whole[GROUP], sum[2] = {0, 0};
    for (int i = 0; i < GROUP; i++) { /* to the nearest: 1.5 * 2^23 has no room for a fraction */
      whole[i] = (int32_t)(float_bits(x[i] * steps + 12582912.0f) - 0x4b400000u);
      whole[i] = whole[i] > 127 ? 127 : whole[i] < -127 ? -127 : whole[i];
    }
    for (int i = 0; i < GROUP / 2; i++) sum[0] += whole[i], sum[1] += whole[GROUP / 2 + i];
    for (int i = 0; i < GROUP; i++) p->entry[i] = (int8_t)whole[i];
    p->scale = largest / 127;
    p->sum[0] = sum[0];
    p->sum[1] = sum[1];
  }
}

/* ---- one group of 32 columns, of all 16 rows */

/* The codes in the order of columns, eight times four; w = scale * (code - offset) + least. */
typedef struct {
  quads code[8];
  floats scale, least;
} group;

INLINE ints dots(const quads *code, int n, const int8_t *entry, ints sum) {
  UNROLL for (int t = 0; t < n; t++) sum = dot(sum, code[t], quad(entry + 4 * t));
  return sum;
}

/* Adds one group of each vector. `offset`: of the codes; `least`: whether there is one. */
INLINE void add(const group *w, const part *const *x, int count, int64_t g, int offset, int least, floats *sum) {
  UNROLL for (int m = 0; m < count; m++) {
    const part *p = x[m] + g;
    int32_t whole = p->sum[0] + p->sum[1];
    ints exact = dots(w->code, 8, p->entry, spread(-offset * whole));
    sum[m] = fma_(wide(exact), scaled(w->scale, p->scale), sum[m]);
    if (least) sum[m] = fma_(w->least, same((float)whole * p->scale), sum[m]);
  }
}

INLINE void q8_0(const uint8_t *w, const part *const *x, int count, int64_t g, floats *sum) {
  quads code[8];
  UNROLL for (int t = 0; t < 8; t++) code[t] = load(w + 64 * t);
  floats d = halves(w + 512);
  UNROLL for (int m = 0; m < count; m++) {
    const part *p = x[m] + g;
    ints exact = start8(p->sum[0] + p->sum[1]);
    UNROLL for (int t = 0; t < 8; t++) exact = dot8(exact, code[t], quad(p->entry + 4 * t));
    sum[m] = fma_(wide(exact), scaled(d, p->scale), sum[m]);
  }
}

INLINE void nibbles(const uint8_t *w, quads *code) { /* a byte has columns j and 16 + j */
  UNROLL for (int t = 0; t < 4; t++) {
    quads both = load(w + 64 * t);
    code[t] = low4(both);
    code[4 + t] = high4(both);
  }
}

INLINE void q4_0(const uint8_t *w, const part *const *x, int count, int64_t g, floats *sum) {
  group found;
  nibbles(w, found.code);
  found.scale = halves(w + 256);
  add(&found, x, count, g, 8, 0, sum);
}

INLINE void q4_1(const uint8_t *w, const part *const *x, int count, int64_t g, floats *sum) {
  group found;
  nibbles(w, found.code);
  found.scale = halves(w + 256);
  found.least = halves(w + 288);
  add(&found, x, count, g, 0, 1, sum);
}

/* ---- blocks of 256 columns */

typedef uint8_t lanes8 __attribute__((vector_size(ROWS))); /* a byte a row */

/* Of each row d, dmin, eight scales and minima of six bits in twelve bytes, then codes: a byte has columns j and 32 + j of
   each 64. */
INLINE void q4_k(const uint8_t *w, const part *const *x, int count, int64_t g, floats *sum) {
  floats d = halves(w), dmin = halves(w + 32);
  const uint8_t *six = w + 64, *codes = w + 256;
  lanes8 scale[8], least[8];
  for (int i = 0; i < 4; i++) {
    lanes8 a, b, c;
    memcpy(&a, six + ROWS * i, ROWS), memcpy(&b, six + ROWS * (4 + i), ROWS), memcpy(&c, six + ROWS * (8 + i), ROWS);
    scale[i] = a & 63, scale[4 + i] = (c & 15) | (a >> 6 << 4);
    least[i] = b & 63, least[4 + i] = c >> 4 | (b >> 6 << 4);
  }
  UNROLL for (int i = 0; i < 8; i++) {
    group found;
    UNROLL for (int t = 0; t < 8; t++) {
      quads both = load(codes + 512 * (i / 2) + 64 * t);
      found.code[t] = i % 2 ? high4(both) : low4(both);
    }
    found.scale = product(d, small((const uint8_t *)&scale[i]));
    found.least = negative(product(dmin, small((const uint8_t *)&least[i])));
    add(&found, x, count, g + i, 0, 1, sum);
  }
}

/* Codes of six bits, 32 too high: four lower ones, then two upper ones; a scale of 8 bits for 16 columns; then d. */
INLINE void q6_k(const uint8_t *w, const part *const *x, int count, int64_t g, floats *sum) {
  const uint8_t *high = w + 2048, *scales = w + 3072;
  floats d = halves(w + 3328);
  UNROLL for (int i = 0; i < 8; i++) {
    const uint8_t *four = w + 1024 * (i / 4) + 512 * (i % 2), *two = high + 512 * (i / 4);
    quads code[8];
    UNROLL for (int t = 0; t < 8; t++) {
      quads both = load(four + 64 * t);
      code[t] = two_above(i % 4 / 2 ? high4(both) : low4(both), load(two + 64 * t), 2 * (i % 4));
    }
    floats first = product(d, small_signed(scales + 32 * i)), second = product(d, small_signed(scales + 32 * i + 16));
    UNROLL for (int m = 0; m < count; m++) {
      const part *p = x[m] + g + i;
      sum[m] = fma_(wide(dots(code, 4, p->entry, spread(-32 * p->sum[0]))), scaled(first, p->scale), sum[m]);
      sum[m] = fma_(wide(dots(code + 4, 4, p->entry + 16, spread(-32 * p->sum[1]))), scaled(second, p->scale), sum[m]);
    }
  }
}

/* ---- rows of blocks */

/* The first `room` of 16 numbers. */
INLINE void put(floats sum, float *y, int64_t room) {
  float all[ROWS];
  if (room >= ROWS) {
    store(y, sum);
    return;
  }
  store(all, sum);
  memcpy(y, all, (size_t)room * sizeof(float));
}

void packed_row(const matrix *w, int64_t r, float *to); /* stored.c */

/* Whether what comes is asked for by hand: where the work on a block is long beside its bytes. */
#define FETCHES(columns, bytes, count) ((columns) > GROUP || ((count) == 1 && (bytes) <= 20))

/* A function for a kind and a number of vectors; blocks have `columns` in `bytes` bytes a row. */
#define TIMES(name, columns, bytes, count)                                                                             \
  static void name##_##count(const uint8_t *w, int64_t in, const uint8_t *x, int64_t room, float *y,                   \
                             int64_t y_stride) {                                                                       \
    const part *from[count];                                                                                           \
    floats sum[count];                                                                                                 \
    UNROLL for (int m = 0; m < count; m++) from[m] = (const part *)(x + m * prepared(in)), sum[m] = zeros();           \
    for (int64_t k = 0; k < in; k += columns, w += ROWS * bytes) {                                                     \
      for (int64_t i = 0; i < (FETCHES(columns, bytes, count) ? ROWS * bytes : 0); i += 64)                             \
        __builtin_prefetch(w + FAR + i);                                                                               \
      name(w, from, count, k / GROUP, sum);                                                                            \
    }                                                                                                                  \
    UNROLL for (int m = 0; m < count; m++) put(sum[m], y + m * y_stride, room);                                        \
  }

#if TILE > 1
#if TILE > 4
#define SEVERAL(_, name, columns, bytes) _(name, columns, bytes, 2) _(name, columns, bytes, 4) _(name, columns, bytes, 8)
#define PASSES(name) PASS(name, 8) PASS(name, 4) PASS(name, 2)
#else
#define SEVERAL(_, name, columns, bytes) _(name, columns, bytes, 2) _(name, columns, bytes, 4)
#define PASSES(name) PASS(name, 4) PASS(name, 2)
#endif
#define PASS(name, n)                                                                                                  \
  for (; left >= n; left -= n, v += n * size, to += n * y_stride) name##_##n(from, in, v, room, to, y_stride);
#else
#define SEVERAL(_, name, columns, bytes)
#define PASSES(name)
#endif

/* Blocks of 16 rows stay in the cache while all vectors pass. */
#define KIND(name, columns, bytes)                                                                                     \
  TIMES(name, columns, bytes, 1)                                                                                       \
  SEVERAL(TIMES, name, columns, bytes)                                                                                 \
  static void name##_product(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y,          \
                             int64_t y_stride) {                                                                       \
    int64_t in = w->in, size = prepared(in);                                                                           \
    for (int64_t r = r0; r < r1; r += ROWS) {                                                                          \
      const uint8_t *from = (const uint8_t *)w->data + r * (in / columns * bytes), *v = x;                             \
      float *to = y + r;                                                                                               \
      int64_t left = count, room = r1 - r;                                                                             \
      PASSES(name)                                                                                                       \
      for (; left; left--, v += size, to += y_stride) name##_1(from, in, v, room, to, y_stride);                       \
    }                                                                                                                  \
  }                                                                                                                    \
  const product_kind name##_kind = {ROWS, prepared, prepare, name##_product, packed_row};

int64_t packed_tile(void) { return TILE; } /* 1: without vector instructions */

KIND(q8_0, 32, 34)
KIND(q4_0, 32, 18)
KIND(q4_1, 32, 20)
KIND(q4_k, 256, 144)
KIND(q6_k, 256, 210)
