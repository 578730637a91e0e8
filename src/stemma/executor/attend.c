/* Attention of one new token a row: rotation, the cache, and the sums over what it sees.

   The threads share out rows and heads. A head's numbers are summed in the order of the slots, whoever does it. */

#include "panels.h"
#include "step.h"

#define SIDE 4 /* query heads that pass over the keys together */
#define WIDE 4 /* vectors of a value that are summed together */

/* Rows of keys or values: `at(slot)` is the first number of one. */
typedef struct {
  int64_t kind, stride, page_slots, page_stride;
  const char *base; /* of the head */
  const int64_t *pages;
} rows;

INLINE const char *slot_of(const rows *r, int64_t slot) {
  int64_t bytes = r->kind == F32 ? 4 : 2, page = 0;
  if (r->pages) page = r->pages[slot / r->page_slots], slot %= r->page_slots;
  return r->base + (page * r->page_stride + slot * r->stride) * bytes;
}

/* How many slots from this one on stand side by side, at most `left`. */
INLINE int64_t side_by_side(const rows *r, int64_t slot, int64_t left) {
  if (!r->pages) return left;
  int64_t room = r->page_slots - slot % r->page_slots;
  return room < left ? room : left;
}

INLINE vec load(int kind, const char *p, int64_t i) {
  if (kind == F32) return LOAD((const float *)p + i);
  if (kind == BF16) return LOAD_BF16((const uint16_t *)p + i);
  return LOAD_F16((const uint16_t *)p + i);
}

INLINE float number(int kind, const char *p, int64_t i) {
  if (kind == F32) return ((const float *)p)[i];
  return kind == BF16 ? from_bf16(((const uint16_t *)p)[i]) : from_f16(((const uint16_t *)p)[i]);
}

/* score[q * count + n] = key n . query q for `count` keys side by side. */
INLINE void scores(int kind, int side, const char *key, int64_t stride, int64_t count, const float *q, int64_t width,
                   float *score, int64_t score_stride) {
  for (int64_t n = 0; n < count; n++, key += stride) {
    vec even[SIDE], odd[SIDE];
    for (int h = 0; h < side; h++) even[h] = ZERO(), odd[h] = ZERO();
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
      vec a = load(kind, key, i), b = load(kind, key, i + LANES);
      for (int h = 0; h < side; h++) {
        even[h] = FMA(a, LOAD(q + h * width + i), even[h]);
        odd[h] = FMA(b, LOAD(q + h * width + i + LANES), odd[h]);
      }
    }
    for (; i + LANES <= width; i += LANES) {
      vec a = load(kind, key, i);
      for (int h = 0; h < side; h++) even[h] = FMA(a, LOAD(q + h * width + i), even[h]);
    }
    for (int h = 0; h < side; h++) {
      float sum = SUM(ADD(even[h], odd[h]));
      for (int64_t j = i; j < width; j++) sum += number(kind, key, j) * q[h * width + j];
      score[h * score_stride + n] = sum;
    }
  }
}

/* to[q * width + i ...] += sum over keys of p * value, for `wide` vectors of numbers from i on. */
INLINE void values(int kind, int side, int wide, const char *value, int64_t stride, int64_t count, const float *p,
                   int64_t p_stride, float *to, int64_t width, int64_t i) {
  vec sum[SIDE][WIDE];
  for (int h = 0; h < side; h++)
    for (int w = 0; w < wide; w++) sum[h][w] = LOAD(to + h * width + i + w * LANES);
  for (int64_t n = 0; n < count; n++, value += stride)
    for (int h = 0; h < side; h++) {
      vec weight = SPREAD(p[h * p_stride + n]);
      for (int w = 0; w < wide; w++) sum[h][w] = FMA(weight, load(kind, value, i + w * LANES), sum[h][w]);
    }
  for (int h = 0; h < side; h++)
    for (int w = 0; w < wide; w++) STORE(to + h * width + i + w * LANES, sum[h][w]);
}

INLINE void all_values(int kind, int side, const char *value, int64_t stride, int64_t count, const float *p,
                       int64_t p_stride, float *to, int64_t width) {
  int64_t i = 0;
  for (; i + WIDE * LANES <= width; i += WIDE * LANES)
    values(kind, side, WIDE, value, stride, count, p, p_stride, to, width, i);
  for (; i + LANES <= width; i += LANES) values(kind, side, 1, value, stride, count, p, p_stride, to, width, i);
  for (; i < width; i++)
    for (int h = 0; h < side; h++)
      for (int64_t n = 0; n < count; n++) to[h * width + i] += p[h * p_stride + n] * number(kind, value + n * stride, i);
}

#define BOTH(kind, side)                                                                                                \
  static void scores_##kind##_##side(const char *key, int64_t stride, int64_t count, const float *q, int64_t width,       \
                                     float *score, int64_t score_stride) {                                                \
    scores(kind, side, key, stride, count, q, width, score, score_stride);                                               \
  }                                                                                                                      \
  static void values_##kind##_##side(const char *value, int64_t stride, int64_t count, const float *p, int64_t p_stride, \
                                     float *to, int64_t width) {                                                          \
    all_values(kind, side, value, stride, count, p, p_stride, to, width);                                                \
  }
BOTH(F32, 1)
BOTH(F32, 2)
BOTH(F32, 4)
BOTH(BF16, 1)
BOTH(BF16, 2)
BOTH(BF16, 4)
BOTH(F16, 1)
BOTH(F16, 2)
BOTH(F16, 4)

typedef void (*score_function)(const char *, int64_t, int64_t, const float *, int64_t, float *, int64_t);
typedef void (*value_function)(const char *, int64_t, int64_t, const float *, int64_t, float *, int64_t);
static const score_function SCORES[3][3] = {{scores_F32_1, scores_F32_2, scores_F32_4},
                                            {scores_BF16_1, scores_BF16_2, scores_BF16_4},
                                            {scores_F16_1, scores_F16_2, scores_F16_4}};
static const value_function VALUES[3][3] = {{values_F32_1, values_F32_2, values_F32_4},
                                            {values_BF16_1, values_BF16_2, values_BF16_4},
                                            {values_F16_1, values_F16_2, values_F16_4}};

INLINE int side_of(int64_t heads) { return heads >= 4 ? 2 : heads >= 2 ? 1 : 0; }

/* Scores of `heads` queries (one key head's) with the slots first..first+count-1: heads x count. */
static void all_scores(const rows *keys, int64_t first, int64_t count, const float *q, int64_t heads, int64_t width,
                       float *score) {
  int64_t bytes = keys->stride * (keys->kind == F32 ? 4 : 2);
  for (int64_t n = 0, run; n < count; n += run) {
    run = side_by_side(keys, first + n, count - n);
    const char *at = slot_of(keys, first + n);
    for (int64_t h = 0; h < heads;) {
      int side = side_of(heads - h);
      SCORES[keys->kind][side](at, bytes, run, q + h * width, width, score + h * count + n, count);
      h += 1 << side;
    }
  }
}

static void weighted_values(const rows *v, int64_t first, int64_t count, const float *p, int64_t heads, int64_t width,
                            float *to) {
  int64_t bytes = v->stride * (v->kind == F32 ? 4 : 2);
  memset(to, 0, (size_t)(heads * width) * sizeof(float));
  for (int64_t n = 0, run; n < count; n += run) {
    run = side_by_side(v, first + n, count - n);
    const char *at = slot_of(v, first + n);
    for (int64_t h = 0; h < heads;) {
      int side = side_of(heads - h);
      VALUES[v->kind][side](at, bytes, run, p + h * count + n, count, to + h * width, width);
      h += 1 << side;
    }
  }
}

static void softmax(float *x, int64_t count) {
  float most = x[0], sum = 0;
  for (int64_t i = 1; i < count; i++) most = x[i] > most ? x[i] : most;
  for (int64_t i = 0; i < count; i++) x[i] = exp_of(x[i] - most);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) sum += x[i];
  for (int64_t i = 0; i < count; i++) x[i] /= sum;
}

static void scale_scores(float *x, int64_t count, float scale, float cap) {
  for (int64_t i = 0; i < count; i++) x[i] *= scale;
  if (cap != 0.0f)
    for (int64_t i = 0; i < count; i++) x[i] = cap * tanh_of(x[i] / cap);
}

/* Turn the pairs of one head. `positions`: a position for each column. */
static void turn(const rotary *by, const float *table, const int64_t *positions, float *x) {
  int64_t step = by->interleaved ? 2 : 1, other = by->interleaved ? 1 : by->pairs;
  for (int64_t c = 0; c < by->columns; c++, x += 2 * by->pairs) {
    const float *cos = table + positions[c] * 2 * by->pairs, *sin = cos + by->pairs;
    for (int64_t i = 0; i < by->pairs; i++) {
      float a = x[i * step], b = x[i * step + other];
      x[i * step] = a * cos[i] - b * sin[i];
      x[i * step + other] = b * cos[i] + a * sin[i];
    }
  }
}

/* One head's query or key, normalised and turned. */
static void ready(const norm *by, int64_t head, const float *from, int64_t width, float *to) {
  if (by->type == NO_NORM) memcpy(to, from, (size_t)width * sizeof(float));
  else norm_row(by, head, from, width, to);
}

static void write_row(int64_t kind, const float *x, int64_t width, char *to) {
  if (kind == F32) memcpy(to, x, (size_t)width * sizeof(float));
  else if (kind == BF16)
    for (int64_t i = 0; i < width; i++) ((uint16_t *)to)[i] = to_bf16(x[i]);
  else
    for (int64_t i = 0; i < width; i++) ((uint16_t *)to)[i] = to_f16(x[i]);
}

static rows head_rows(const layer_cache *c, const void *base, int64_t row, int64_t head, int64_t width) {
  int64_t bytes = c->kind == F32 ? 4 : 2;
  rows r = {c->kind, width, c->page_slots, c->page_stride, (const char *)base + head * c->head_stride * bytes,
            c->pages + row * c->row_pages};
  return r;
}

static void append(const state *s, const attend_step *op, int64_t m, int64_t head) {
  const layer_cache *c = s->run->caches + op->layer;
  const int64_t *positions = s->run->positions + m * s->run->columns;
  rows keys = head_rows(c, c->keys, m, head, op->width), vals = head_rows(c, c->values, m, head, op->width);
  int64_t slot = s->run->order[m] % c->slots;
  float *k = (float *)s->scratch;
  ready(&op->k_norm, head, row_of(s, op->k, m) + head * op->width, op->width, k);
  if (op->turn.pairs) turn(&op->turn, op->turn.keys ? op->turn.keys : op->turn.table, positions, k);
  write_row(c->kind, k, op->width, (char *)slot_of(&keys, slot));
  write_row(c->kind, row_of(s, op->v, m) + head * op->width, op->width, (char *)slot_of(&vals, slot));
}

/* What the positions add to the scores of one head. The token in slot n is `distance` places before the newest. */
static void add_bias(const attend_step *op, int64_t head, float *score, int64_t first, int64_t count, int64_t place,
                     int64_t slots) {
  for (int64_t n = 0; n < count; n++) {
    int64_t distance = place - (first + n);
    if (place >= slots) distance = (place - (first + n)) % slots; /* a ring */
    if (op->bias == ALIBI) {
      score[n] -= op->slopes[head] * (float)distance;
    } else {
      int64_t bucket = op->buckets[distance < op->distances ? distance : op->distances - 1];
      score[n] += entry(&op->table, bucket * op->heads + head);
    }
  }
}

/* Query heads h0..h1-1 of one key head, for one row. */
static void read(const state *s, const attend_step *op, int64_t m, int64_t head, int64_t h0, int64_t h1) {
  const layer_cache *c = s->run->caches + op->layer;
  const int64_t *positions = s->run->positions + m * s->run->columns;
  int64_t place = s->run->order[m], width = op->width, heads = h1 - h0, first = 0, count = c->slots;
  if (place < c->slots) { /* nothing was overwritten */
    if (op->window && place + 1 > op->window) first = place + 1 - op->window;
    count = place + 1 - first;
  }
  rows keys = head_rows(c, c->keys, m, head, width), vals = head_rows(c, c->values, m, head, width);
  float *q = (float *)s->scratch, *score = q + heads * width;
  for (int64_t h = 0; h < heads; h++) {
    ready(&op->q_norm, h0 + h, row_of(s, op->q, m) + (h0 + h) * width, width, q + h * width);
    if (op->turn.pairs) turn(&op->turn, op->turn.table, positions, q + h * width);
  }
  all_scores(&keys, first, count, q, heads, width, score);
  for (int64_t h = 0; h < heads; h++) {
    scale_scores(score + h * count, count, op->scale, op->cap);
    if (op->bias != NO_BIAS) add_bias(op, h0 + h, score + h * count, first, count, place, c->slots);
    softmax(score + h * count, count);
  }
  weighted_values(&vals, first, count, score, heads, width, row_of(s, op->to, m) + h0 * width);
}

void attend(const state *s, const attend_step *op) {
  int64_t from, to, group = op->heads / op->kv, units = s->run->rows * op->kv;
  share(s, units, 1, &from, &to);
  for (int64_t n = from; n < to; n++) append(s, op, n / op->kv, n % op->kv);
  if (units % s->threads == 0 || group == 1 || units >= 4 * s->threads) { /* whoever wrote a key head reads it */
    for (int64_t n = from; n < to; n++)
      read(s, op, n / op->kv, n % op->kv, n % op->kv * group, (n % op->kv + 1) * group);
    return;
  }
  wait_for_all(s); /* few key heads: their queries are shared out */
  share(s, units * group, 1, &from, &to);
  for (int64_t n = from; n < to;) {
    int64_t unit = n / group, h0 = n % group, h1 = group;
    if (unit * group + h1 > to) h1 = to - unit * group;
    int64_t head = unit % op->kv;
    read(s, op, unit / op->kv, head, head * group + h0, head * group + h1);
    n = unit * group + h1;
  }
}

/* ---- prompts: many tokens of a text at once */

static int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

/* The queries or keys of a row, normalised and turned where they lie. */
static void prepare_heads(const state *s, int64_t buffer, int64_t m, int64_t heads, int64_t width, const norm *by,
                          const rotary *turned, const float *table) {
  for (int64_t h = 0; h < heads; h++) {
    float *x = row_of(s, buffer, m) + h * width;
    if (by->type != NO_NORM) norm_row(by, h, x, width, x);
    if (turned->pairs) turn(turned, table, s->run->positions + m * s->run->columns, x);
  }
}

/* Keys and values as numbers of the cache's kind, so that it does not matter in how many pieces a text is read. */
static void round_row(int64_t kind, float *x, int64_t width) {
  for (int64_t i = 0; kind == BF16 && i < width; i++) x[i] = from_bf16(to_bf16(x[i]));
  for (int64_t i = 0; kind == F16 && i < width; i++) x[i] = from_f16(to_f16(x[i]));
}

/* The key or value at place n of a piece's text: new ones are in a buffer, others in the cache. */
static void number_row(const state *s, const piece *p, int64_t buffer, int64_t head, const rows *old, int64_t slots,
                       int64_t n, int64_t width, float *to) {
  if (n >= p->start) {
    memcpy(to, row_of(s, buffer, p->first + n - p->start) + head * width, (size_t)width * sizeof(float));
    return;
  }
  const char *from = slot_of(old, n % slots);
  for (int64_t i = 0; i < width; i++) to[i] = number((int)old->kind, from, i);
}

/* What the queries of one key head of a piece read: keys in panels, values row after row, from place `low` on. */
typedef struct {
  int64_t low, count, wide, columns;
  float *keys, *values, *score, *sum;
} seen;

static seen collect(const state *s, const attend_step *op, const piece *p, int64_t head) {
  const layer_cache *c = s->run->caches + op->layer;
  int64_t width = op->width, low = op->window && p->start + 1 > op->window ? p->start + 1 - op->window : 0;
  seen all = {low, p->start + p->count - low, whole(width, LANES), 0, (float *)s->scratch, 0, 0, 0};
  all.columns = whole(all.count, PANEL);
  all.values = all.keys + all.columns * width, all.score = all.values + all.count * all.wide;
  all.sum = all.score + HIGH * all.columns;
  float *some = all.sum + HIGH * all.wide;
  rows keys = head_rows(c, c->keys, p->row, head, width), vals = head_rows(c, c->values, p->row, head, width);
  memset(all.values, 0, (size_t)(all.count * all.wide) * sizeof(float));
  for (int64_t n = 0; n < all.count; n += PANEL) {
    int64_t here = all.count - n < PANEL ? all.count - n : PANEL;
    for (int64_t i = 0; i < here; i++) {
      number_row(s, p, op->k, head, &keys, c->slots, low + n + i, width, some + i * width);
      number_row(s, p, op->v, head, &vals, c->slots, low + n + i, width, all.values + (n + i) * all.wide);
    }
    to_panel(some, width, width, here, all.keys + n * width);
  }
  return all;
}

static int64_t pieces_scratch(const attend_step *op, const run *r) {
  int64_t wide = whole(op->width, LANES), columns = whole(r->longest, PANEL);
  return (columns * (op->width + HIGH) + (r->longest + HIGH) * wide + PANEL * op->width) * (int64_t)sizeof(float);
}

/* Some queries of a head that follow each other, from row i of a piece on. */
static void read_queries(const state *s, const attend_step *op, const piece *p, const seen *all, int64_t head, int64_t i,
                         int64_t count) {
  int64_t width = op->width, stride = s->tape->buffer[op->q].width, first = p->start + i, last = first + count - 1;
  int64_t from = op->window && first + 1 - op->window > all->low ? first + 1 - op->window - all->low : 0;
  int64_t to = last + 1 - all->low;
  const float *q = row_of(s, op->q, p->first + i) + head * width;
  from = from / PANEL * PANEL;
  for (int64_t n = from; n < to; n += PANEL) {
    int64_t here = all->count - n < PANEL ? whole(all->count - n, LANES) : PANEL;
    times_panel(count, here, q, stride, width, all->keys + n * width, here, all->score + n, all->columns);
  }
  for (int64_t r = 0; r < count; r++) {
    float *score = all->score + r * all->columns;
    int64_t place = first + r, end = place + 1 - all->low;
    int64_t begin = op->window && place + 1 - op->window > all->low ? place + 1 - op->window - all->low : 0;
    scale_scores(score + begin, end - begin, op->scale, op->cap);
    if (op->bias != NO_BIAS) add_bias(op, head, score + begin, all->low + begin, end - begin, place, INT64_MAX);
    softmax(score + begin, end - begin);
    for (int64_t n = from; n < begin; n++) score[n] = 0;
    for (int64_t n = end; n < to; n++) score[n] = 0;
  }
  times_panel(count, all->wide, all->score + from, all->columns, to - from, all->values + from * all->wide, all->wide,
              all->sum, all->wide);
  for (int64_t r = 0; r < count; r++)
    memcpy(row_of(s, op->to, p->first + i + r) + head * width, all->sum + r * all->wide, (size_t)width * sizeof(float));
}

static void append_piece(const state *s, const attend_step *op, const piece *p, int64_t head) {
  const layer_cache *c = s->run->caches + op->layer;
  int64_t width = op->width, end = p->start + p->count;
  rows keys = head_rows(c, c->keys, p->row, head, width), vals = head_rows(c, c->values, p->row, head, width);
  for (int64_t n = end - c->slots > p->start ? end - c->slots : p->start; n < end; n++) {
    int64_t m = p->first + n - p->start, slot = n % c->slots;
    write_row(c->kind, row_of(s, op->k, m) + head * width, width, (char *)slot_of(&keys, slot));
    write_row(c->kind, row_of(s, op->v, m) + head * width, width, (char *)slot_of(&vals, slot));
  }
}

/* Attention of the tokens of a prompt to those before them; then the cache gets their keys and values. */
void attend_pieces(const state *s, const attend_step *op) {
  const run *r = s->run;
  int64_t from, to, group = op->heads / op->kv, width = op->width, kind = r->caches[op->layer].kind;
  share(s, r->rows, 1, &from, &to);
  for (int64_t m = from; m < to; m++) {
    prepare_heads(s, op->q, m, op->heads, width, &op->q_norm, &op->turn, op->turn.table);
    prepare_heads(s, op->k, m, op->kv, width, &op->k_norm, &op->turn, op->turn.keys ? op->turn.keys : op->turn.table);
    round_row(kind, row_of(s, op->k, m), op->kv * width);
    round_row(kind, row_of(s, op->v, m), op->kv * width);
  }
  wait_for_all(s);
  int64_t units = r->piece_count * op->kv, parts = units % s->threads && units < 4 * s->threads ? group : 1;
  share(s, units * parts, 1, &from, &to);
  for (int64_t n = from; n < to; n++) {
    const piece *p = r->pieces + n / parts / op->kv;
    int64_t head = n / parts % op->kv, some = group / parts, h0 = head * group + n % parts * some;
    seen all = collect(s, op, p, head);
    for (int64_t h = h0; h < h0 + some; h++)
      for (int64_t i = 0; i < p->count; i += HIGH)
        read_queries(s, op, p, &all, h, i, p->count - i < HIGH ? p->count - i : HIGH);
  }
  wait_for_all(s);
  share(s, units, 1, &from, &to);
  for (int64_t n = from; n < to; n++) append_piece(s, op, r->pieces + n / op->kv, n % op->kv);
}

int64_t attend_scratch(const attend_step *op, const run *r) {
  if (r->pieces) return pieces_scratch(op, r);
  int64_t group = op->heads / op->kv;
  return (group * (op->width + r->longest) + op->width) * (int64_t)sizeof(float);
}

void cross(const state *s, const cross_step *op) {
  const layer_cross *c = s->run->crosses + op->layer;
  int64_t from, to, group = op->heads / op->kv, width = op->width, bytes = c->kind == F32 ? 4 : 2;
  share(s, s->run->rows * op->kv, 1, &from, &to);
  for (int64_t n = from; n < to; n++) {
    int64_t m = n / op->kv, head = n % op->kv, count = c->length;
    const uint8_t *seen = s->run->mask ? (const uint8_t *)s->run->mask + m * count : 0;
    rows keys = {c->kind, c->k_slot, 0, 0, (const char *)c->keys + (m * c->k_row + head * c->k_head) * bytes, 0};
    rows vals = {c->kind, c->v_slot, 0, 0, (const char *)c->values + (m * c->v_row + head * c->v_head) * bytes, 0};
    float *q = (float *)s->scratch, *score = q + group * width;
    for (int64_t h = 0; h < group; h++)
      ready(&op->q_norm, head * group + h, row_of(s, op->q, m) + (head * group + h) * width, width, q + h * width);
    all_scores(&keys, 0, count, q, group, width, score);
    for (int64_t h = 0; h < group; h++) {
      scale_scores(score + h * count, count, op->scale, op->cap);
      for (int64_t i = 0; seen && i < count; i++) score[h * count + i] = seen[i] ? score[h * count + i] : -3.0e38f;
      softmax(score + h * count, count);
    }
    weighted_values(&vals, 0, count, score, group, width, row_of(s, op->to, m) + head * group * width);
  }
}

int64_t cross_scratch(const cross_step *op, const run *r) {
  int64_t group = op->heads / op->kv;
  return group * (op->width + r->crosses[op->layer].length) * (int64_t)sizeof(float);
}
