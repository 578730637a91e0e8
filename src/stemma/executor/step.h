/* What the files of the executor share: the state of a running step, barriers, and functions of one number. */
#ifndef STEMMA_STEP_H
#define STEMMA_STEP_H

#include "simd.h"
#include "tape.h"

#define FEW 2 /* rows up to which a private buffer is filled by every thread */

typedef struct shared shared;

/* Whether every thread fills its own copy of private buffers. */
INLINE int64_t is_few(const run *r) { return r->rows <= FEW && !r->pieces; }

/* One thread's view of a step. `few`: private buffers are its own. */
typedef struct {
  const tape *tape;
  const run *run;
  shared *all;
  int64_t thread, threads, few;
  float **buffers;
  char *scratch; /* its own */
  char *common;  /* of all threads */
} state;

void wait_for_all(const state *s);
void norm_row(const norm *by, int64_t head, const float *x, int64_t width, float *to);
void attend(const state *s, const attend_step *op);
void attend_pieces(const state *s, const attend_step *op);
void cross(const state *s, const cross_step *op);
int64_t attend_scratch(const attend_step *op, const run *r);
int64_t cross_scratch(const cross_step *op, const run *r);
void choose(const state *s);
int64_t choose_scratch(const tape *t, const run *r);

/* The share of `count` things that a thread gets, in whole tiles. */
INLINE void share(const state *s, int64_t count, int64_t tile, int64_t *from, int64_t *to) {
  int64_t tiles = (count + tile - 1) / tile;
  *from = tiles * s->thread / s->threads * tile;
  *to = tiles * (s->thread + 1) / s->threads * tile;
  if (*to > count) *to = count;
  if (*from > count) *from = count;
}

INLINE float *row_of(const state *s, int64_t buffer, int64_t row) {
  return s->buffers[buffer] + row * s->tape->buffer[buffer].width;
}

/* The rows of a private or shared buffer that a thread fills. */
INLINE void rows_to_fill(const state *s, int64_t buffer, int64_t *from, int64_t *to) {
  *from = 0, *to = s->run->rows;
  if (!(s->few && s->tape->buffer[buffer].private)) share(s, s->run->rows, 1, from, to);
}

INLINE float entry(const vector *v, int64_t i) {
  if (v->kind == F32) return ((const float *)v->data)[i];
  uint16_t half = ((const uint16_t *)v->data)[i];
  return v->kind == BF16 ? from_bf16(half) : from_f16(half);
}

/* e^x to the last bits, 0 below -87. */
INLINE float exp_of(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  float rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * rest + 1.3981999507e-3f;
  y = y * rest + 8.3334519073e-3f;
  y = y * rest + 4.1665795894e-2f;
  y = y * rest + 1.6666665459e-1f;
  y = y * rest + 5.0000001201e-1f;
  y = y * rest * rest + rest + 1.0f;
  return y * bits_float((uint32_t)((int32_t)whole + 127) << 23);
}

INLINE float tanh_of(float x) {
  float size = x < 0 ? -x : x;
  float falls = exp_of(-2.0f * size);
  float y = (1.0f - falls) / (1.0f + falls);
  float square = x * x;
  y = size < 0.05f ? size * (1.0f - square * (0.333333333f - square * 0.133333333f)) : y;
  return x < 0 ? -y : y;
}

/* Abramowitz and Stegun 7.1.26: within 1.5e-7. */
INLINE float erf_of(float x) {
  float size = x < 0 ? -x : x;
  float t = 1.0f / (1.0f + 0.3275911f * size);
  float y = 1.061405429f;
  y = y * t - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  y = 1.0f - y * t * exp_of(-size * size);
  return x < 0 ? -y : y;
}

#endif
