/* Products with matrices that stay as their modules keep them: int8 with a scale a row, NF4, and those blocks of GGUF files
   that quant.c does not pack. Vectors are fp32; sums are those of the kernels in `stemma.quantize`. */

#include "../quantize/blocks.c"
#include "../quantize/kernels.c"
#include "product.h"

/* ---- int8: `scales` has a number a row */

static void int8_rows(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y,
                      int64_t y_stride) {
  const float *vectors = x, *scale = w->scales;
  for (int64_t r = r0; r < r1; r++) {
    const int8_t *codes = (const int8_t *)w->data + r * w->stride;
    for (int64_t m = 0; m < count; m++) {
      const float *v = vectors + m * w->in;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < w->in; k++) sum += v[k] * codes[k];
      y[m * y_stride + r] = sum * scale[r];
    }
  }
}

static void int8_row(const matrix *w, int64_t r, float *to) {
  const int8_t *codes = (const int8_t *)w->data + r * w->stride;
  for (int64_t k = 0; k < w->in; k++) to[k] = ((const float *)w->scales)[r] * codes[k];
}

const product_kind int8_kind = {16, 0, 0, int8_rows, int8_row};

/* ---- NF4: `extra` is `weights` of kernels.c */

static int64_t nf4_prepared(int64_t in) { return (in * (int64_t)sizeof(float) + 63) / 64 * 64; }

static void nf4_prepare(const float *x, int64_t in, void *to) {
  float *halves = to;
  for (int64_t k = 0; k < in / 2; k++) halves[k] = x[2 * k], halves[in / 2 + k] = x[2 * k + 1];
}

static void nf4_rows(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y,
                     int64_t y_stride) {
  const float *v = x;
  for (int64_t r = r0; r < r1; r++) {
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) row(w->extra, r, w->in, v + m * w->in, 4, y + m * y_stride + r, y_stride);
    for (; m < count; m++) row(w->extra, r, w->in, v + m * w->in, 1, y + m * y_stride + r, y_stride);
  }
}

const product_kind nf4_kind = {16, nf4_prepared, nf4_prepare, nf4_rows, 0};

/* ---- other blocks: `extra` is the type's place in native.BLOCKS */

static void blocks_rows(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y,
                        int64_t y_stride) {
  const float *vectors = x;
  int kind = (int)(intptr_t)w->extra;
  for (int64_t r = r0; r < r1; r++) {
    const uint8_t *at = (const uint8_t *)w->data + r * w->stride;
    for (int64_t m = 0; m < count; m++) y[m * y_stride + r] = 0;
    for (int64_t k = 0; k < w->in; k += AT_ONCE) {
      float part[AT_ONCE];
      int64_t some = w->in - k < AT_ONCE ? w->in - k : AT_ONCE;
      at += unpack(kind, at, some, part);
      add_part(part, vectors + k, some, count, w->in, y + r, y_stride);
    }
  }
}

static void blocks_row(const matrix *w, int64_t r, float *to) {
  unpack((int)(intptr_t)w->extra, (const uint8_t *)w->data + r * w->stride, w->in, to);
}

const product_kind blocks_kind = {16, 0, 0, blocks_rows, blocks_row};

/* ---- rows of the packed kinds of quant.c */

void packed_row(const matrix *w, int64_t r, float *to) {
  static const int place[KINDS] = {[Q4_0] = 0, [Q4_1] = 1, [Q8_0] = 4, [Q4_K] = 7, [Q6_K] = 9};
  unpack_lane(place[w->kind], (const uint8_t *)w->data + r / 16 * 16 * w->stride, r % 16, w->in, to);
}
