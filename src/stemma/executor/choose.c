/* The likeliest next token of each row, and how likely it is.

   Threads share out blocks of the vocabulary. What the blocks have is added in their order, whoever looked at them. */

#include "step.h"

#define BLOCK 2048 /* logits of a row that are looked at together */

typedef struct {
  float most;
  int32_t at;
  float total; /* of e^(logit - most) */
} found;

static int64_t blocks_of(const tape *t) { return (t->vocab + BLOCK - 1) / BLOCK; }

int64_t choose_scratch(const tape *t, const run *r) { return r->rows * blocks_of(t) * (int64_t)sizeof(found); }

static found look(const float *x, int64_t count) {
  float most = x[0], total = 0;
  int64_t at = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; i++) total += exp_of(x[i] - most);
  while (at < count - 1 && x[at] != most) at++;
  return (found){most, (int32_t)at, total};
}

void choose(const state *s) {
  const run *r = s->run;
  int64_t vocab = s->tape->vocab, blocks = blocks_of(s->tape), from, to;
  found *all = (found *)s->common;
  share(s, r->rows * blocks, 1, &from, &to);
  for (int64_t n = from; n < to; n++) {
    int64_t first = n % blocks * BLOCK, count = vocab - first < BLOCK ? vocab - first : BLOCK;
    all[n] = look(r->logits + n / blocks * vocab + first, count);
  }
  wait_for_all(s);
  share(s, r->rows, 1, &from, &to);
  for (int64_t m = from; m < to; m++) {
    const found *own = all + m * blocks;
    int64_t best = 0;
    for (int64_t i = 1; i < blocks; i++) best = own[i].most > own[best].most ? i : best;
    double total = 0;
    for (int64_t i = 0; i < blocks; i++) total += (double)own[i].total * exp_of(own[i].most - own[best].most);
    r->best[m] = best * BLOCK + own[best].at;
    r->total[m] = total;
  }
}
