/* A decoding step as a flat tape of instructions. structs.py reads the structures of this file and of product.h, so a field
   is `int64_t`, `float`, a pointer, or another structure.

   Buffers are named by number. One holds a row of `width` floats for each row of the batch. A private buffer is one that
   every thread fills for itself while there are few rows, which saves a barrier. */
#ifndef STEMMA_TAPE_H
#define STEMMA_TAPE_H

#include "product.h"

enum operations { EMBED, NORM, PRODUCT, ATTEND, CROSS, ROUTE, EXPERTS };
enum sources { TOKEN, LANGUAGE, FIRST, POSITION }; /* what picks a row of a table; POSITION + column */
enum norms { NO_NORM, RMS, LAYER };
enum activations { NO_ACTIVATION, SILU, GELU, GELU_TANH, QUICK_GELU, RELU, RELU2, TANH };
enum biases { NO_BIAS, ALIBI, BUCKETS };

/* Numbers of one of the kinds F32, BF16 and F16; `data` may be NULL: there are none. */
typedef struct {
  int64_t kind;
  const void *data;
} vector;

typedef struct {
  int64_t width, private;
} buffer;

/* Rows `index + offset` of a table of `rows`, times `factor`. The table is `whole` where that is not NULL. */
typedef struct {
  int64_t source, offset, stride, rows;
  vector table;
  const matrix *whole;
  float factor;
} lookup;

/* to = sum of the tables' rows */
typedef struct {
  int64_t to, count;
  const lookup *tables;
} embed_step;

/* `offset` is added to the gain (OffsetRMSNorm: 1). `stride`: numbers from one head's gains to the next, 0: shared. */
typedef struct {
  int64_t type, stride;
  float eps, offset;
  vector gain, bias;
} norm;

/* to = norm(from), or residual + norm(from) */
typedef struct {
  int64_t from, to, residual;
  norm by;
} norm_step;

/* raw = W from; to = residual * residual_factor + act(cap((raw * scale + bias + beside) * factor)) * times. A buffer of -1:
   none. */
typedef struct {
  matrix w;
  vector bias;
  int64_t raw, to, beside, residual, times, act, check;
  float scale, factor, cap, residual_factor;
} part;

/* Matrices that read one buffer in one form. Every thread takes its share of the rows of each. */
typedef struct {
  int64_t from, count;
  const part *parts;
} product_step;

/* Cosines and sines of each position: `table` has rows of 2 * pairs numbers, cosines first. Columns of positions turn
   parts of a head one after the other. `keys`: the table of keys, where it is another one. */
typedef struct {
  int64_t pairs, columns, interleaved;
  const float *table, *keys;
} rotary;

/* Self-attention of one layer: new keys and values enter the cache, queries read it. `window` 0: none. `bias`: ALIBI with
   `slopes` (a number a head), or BUCKETS with `table` (buckets x heads) and the bucket of each distance below `distances`,
   the last one for all beyond. */
typedef struct {
  int64_t q, k, v, to, layer, heads, kv, width, window, bias, distances;
  float scale, cap;
  norm q_norm, k_norm;
  rotary turn;
  const float *slopes;
  const int64_t *buckets;
  vector table;
} attend_step;

/* Attention of one layer over the keys and values of the encoder's output. */
typedef struct {
  int64_t q, to, layer, heads, kv, width;
  float scale, cap;
  norm q_norm;
} cross_step;

/* The `active` likeliest of `count` experts by the softmax of `from`; to: their numbers, then their weights. */
typedef struct {
  int64_t from, to, count, active, normalised;
} route_step;

/* to = residual + sum of weights * down(act(gate x) * up x) over the chosen experts. `gate`, `up`, `down`: the first
   expert's matrix, the others' follow, `expert_bytes` apart. `hidden`: active * d_ff wide; `raw`: d_model wide. */
typedef struct {
  int64_t from, route, hidden, other, raw, to, residual, active, act, gate_bytes, down_bytes;
  matrix gate, up, down;
} experts_step;

/* `sync`: the threads wait for each other behind it; 2: only where they share out the rows of a private buffer. */
typedef struct {
  int64_t operation, sync;
  const void *step;
} instruction;

/* `tail`: the first instruction of the head; `stream`: the buffer that it reads. */
typedef struct {
  int64_t count, buffers, logits, vocab, tail, stream;
  const instruction *instructions;
  const buffer *buffer;
} tape;

/* Keys and values of one layer. Slot s of a row is in page `pages[row * row_pages + s / page_slots]`; the token at place p of
   its row is in slot p mod `slots`. Strides are numbers: from page to page, and from head to head in a page. */
typedef struct {
  int64_t kind, page_stride, head_stride, page_slots, slots, row_pages;
  void *keys, *values;
  const int64_t *pages;
} layer_cache;

/* Keys and values of the encoder's output. Strides are numbers, of keys and of values. */
typedef struct {
  int64_t kind, length, k_row, k_head, k_slot, v_row, v_head, v_slot;
  const void *keys, *values;
} layer_cross;

/* Tokens of one text that a prompt's run reads: `count` rows of the run from `first` on, at places `start` and following
   of row `row` of the cache. */
typedef struct {
  int64_t row, first, count, start;
} piece;

/* One step: `rows` tokens, their places in their rows (`order`) and positions (`columns` each), which are below `reach`:
   what tables by position hold. `mask`: rows x length bytes, 1 where the encoder's token is seen; NULL: all are.
   `workspace`: `room` bytes, as many as `tape_size` says. Of each row, `best` gets the first of the likeliest next tokens,
   and `total` the sum of e^(logit - best logit).

   A prompt is read in the same way, its tokens being the rows, with `pieces`; what lies in the cache is `longest`. The
   head reads the rows `wanted` alone, in rising order; logits, `best` and `total` are theirs. */
typedef struct {
  int64_t rows, columns, threads, longest, reach, room, piece_count, wanted_count;
  const piece *pieces;
  const int64_t *wanted;
  const int64_t *tokens, *languages, *positions, *order;
  const layer_cache *caches;
  const layer_cross *crosses;
  const void *mask;
  float *logits;
  int64_t *best;
  double *total;
  void *workspace;
} run;

/* y = W x for many vectors, row after row. `workspace`: as many bytes as `many_size` says. */
typedef struct {
  matrix w;
  int64_t count, threads;
  const float *x;
  float *y;
  void *workspace;
} many;

int64_t many_size(const many *p);
int64_t many_run(const many *p);

/* What became of a step; where tables or the workspace are short, nothing was done. */
enum outcomes { DONE, NOT_FINITE, NO_SUCH_ROW, SHORT_TABLES, SMALL_WORKSPACE };

int64_t tape_size(const tape *t, const run *r);
int64_t tape_run(const tape *t, const run *r); /* one of `outcomes` */
int64_t tape_reads(const tape *t);             /* whether prompts are read well: 1 or 0 */

#endif
