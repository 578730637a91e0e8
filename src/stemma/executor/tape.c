/* A tape run in one parallel region: every thread goes through all instructions and does its share of each. */

#include "panels.h"
#include "step.h"

#include <sched.h>
#include <stdatomic.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

#define ROOM (1 << 19) /* bytes of prepared vectors that stay in the cache while all rows pass */
#define SPINS 4000 /* looks at the barrier before the thread sleeps */
#define ALIGNED(bytes) (((bytes) + 63) & ~(int64_t)63)
#define MOST_THREADS 256

struct shared {
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_int generation;
  _Alignas(64) atomic_int asleep;
  atomic_int wrong;
};

/* Sleep until the generation is another one: a neighbour that needs the processor gets it, and so does a thread of ours that
   waits for one. */
static void sleep_while(shared *all, int now) {
#ifdef __linux__
  atomic_fetch_add(&all->asleep, 1);
  syscall(SYS_futex, &all->generation, FUTEX_WAIT_PRIVATE, now, 0, 0, 0);
  atomic_fetch_sub(&all->asleep, 1);
#else
  (void)all, (void)now;
  sched_yield();
#endif
}

void wait_for_all(const state *s) {
  if (s->threads == 1) return;
  shared *all = s->all;
  int now = atomic_load_explicit(&all->generation, memory_order_acquire);
  if (atomic_fetch_add_explicit(&all->arrived, 1, memory_order_acq_rel) == s->threads - 1) {
    atomic_store_explicit(&all->arrived, 0, memory_order_relaxed);
    atomic_store(&all->generation, now + 1);
#ifdef __linux__
    if (atomic_load(&all->asleep)) syscall(SYS_futex, &all->generation, FUTEX_WAKE_PRIVATE, MOST_THREADS, 0, 0, 0);
#endif
    return;
  }
  for (int64_t i = 0; atomic_load_explicit(&all->generation, memory_order_acquire) == now; i++) {
    if (i > SPINS) sleep_while(all, now);
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#elif defined(__aarch64__)
    else __asm__ __volatile__("yield");
#endif
  }
}

static int64_t row_in(const lookup *table, const run *r, int64_t m) {
  if (table->source == TOKEN) return table->offset + r->tokens[m];
  if (table->source == LANGUAGE) return table->offset + r->languages[m];
  if (table->source == FIRST) return table->offset;
  return table->offset + r->positions[m * r->columns + table->source - POSITION];
}

/* A table of languages, where no row has one. */
static int left_out(const lookup *table, const run *r) { return table->source == LANGUAGE && !r->languages; }

static int in_tables(const tape *t, const run *r) {
  for (int64_t n = 0; n < t->count; n++) {
    if (t->instructions[n].operation != EMBED) continue;
    const embed_step *op = t->instructions[n].step;
    for (int64_t i = 0; i < op->count; i++)
      for (int64_t m = 0; m < r->rows; m++) {
        if (left_out(op->tables + i, r)) continue;
        int64_t row = row_in(op->tables + i, r, m);
        if (row < 0 || row >= op->tables[i].rows) return 0;
      }
  }
  return 1;
}

static void embed(const state *s, const embed_step *op) {
  int64_t m, end, width = s->tape->buffer[op->to].width;
  for (rows_to_fill(s, op->to, &m, &end); m < end; m++) {
    float *to = row_of(s, op->to, m);
    for (int64_t n = 0; n < op->count; n++) {
      const lookup *one = op->tables + n;
      if (one->whole) {
        float *own = (float *)s->scratch;
        product_kinds[one->whole->kind]->row(one->whole, row_in(one, s->run, m), own);
        for (int64_t i = 0; i < width; i++) to[i] = (n ? to[i] : 0.0f) + own[i] * one->factor;
        continue;
      }
      if (left_out(one, s->run)) continue;
      vector from = {one->table.kind, (const char *)one->table.data + row_in(one, s->run, m) * one->stride};
      for (int64_t i = 0; i < width; i++) to[i] = (n ? to[i] : 0.0f) + entry(&from, i) * one->factor;
    }
  }
}

void norm_row(const norm *by, int64_t head, const float *x, int64_t width, float *to) {
  float sum = 0, square = 0;
  if (by->type == LAYER) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += x[i];
    sum /= (float)width;
  }
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < width; i++) square += (x[i] - sum) * (x[i] - sum);
  float size = 1.0f / __builtin_sqrtf(square / (float)width + by->eps);
  int64_t at = head * by->stride;
  for (int64_t i = 0; i < width; i++) to[i] = (x[i] - sum) * size;
  if (by->gain.data)
    for (int64_t i = 0; i < width; i++) to[i] *= by->offset + entry(&by->gain, at + i);
  if (by->bias.data)
    for (int64_t i = 0; i < width; i++) to[i] += entry(&by->bias, at + i);
}

static void normalise(const state *s, const norm_step *op) {
  int64_t m, end, width = s->tape->buffer[op->to].width;
  float *own = (float *)s->scratch;
  for (rows_to_fill(s, op->to, &m, &end); m < end; m++) {
    float *to = row_of(s, op->to, m);
    if (op->residual < 0) {
      norm_row(&op->by, 0, row_of(s, op->from, m), width, to);
      continue;
    }
    norm_row(&op->by, 0, row_of(s, op->from, m), width, own);
    const float *residual = row_of(s, op->residual, m);
    for (int64_t i = 0; i < width; i++) to[i] = residual[i] + own[i];
  }
}

static void activate(int64_t act, float *y, int64_t count) {
#define EACH(value)                             \
  for (int64_t i = 0; i < count; i++) {         \
    float x = y[i];                             \
    y[i] = (value);                             \
  }                                             \
  break
  switch (act) {
    case SILU: EACH(x / (1.0f + exp_of(-x)));
    case GELU: EACH(0.5f * x * (1.0f + erf_of(x * 0.70710678f)));
    case GELU_TANH: EACH(0.5f * x * (1.0f + tanh_of(0.79788456f * (x + 0.044715f * x * x * x))));
    case QUICK_GELU: EACH(x / (1.0f + exp_of(-1.702f * x)));
    case RELU: EACH(x > 0 ? x : 0.0f);
    case RELU2: EACH(x > 0 ? x * x : 0.0f);
    case TANH: EACH(tanh_of(x));
  }
#undef EACH
}

/* What follows the product itself, for the rows of the matrix that this thread multiplied. */
static void finish(const state *s, const part *p, int64_t r0, int64_t r1) {
  int64_t count = r1 - r0;
  int wrong = 0;
  for (int64_t m = 0; m < s->run->rows; m++) {
    float *y = row_of(s, p->raw, m) + r0, *to = row_of(s, p->to, m) + r0;
    if (p->scale != 1.0f)
      for (int64_t i = 0; i < count; i++) y[i] *= p->scale;
    if (p->bias.data)
      for (int64_t i = 0; i < count; i++) y[i] += entry(&p->bias, r0 + i);
    if (p->beside >= 0) {
      const float *beside = row_of(s, p->beside, m) + r0;
      for (int64_t i = 0; i < count; i++) y[i] += beside[i];
    }
    if (p->factor != 1.0f)
      for (int64_t i = 0; i < count; i++) y[i] *= p->factor;
    if (p->cap != 0.0f)
      for (int64_t i = 0; i < count; i++) y[i] = p->cap * tanh_of(y[i] / p->cap);
    activate(p->act, y, count);
    if (p->times >= 0) {
      const float *other = row_of(s, p->times, m) + r0;
      for (int64_t i = 0; i < count; i++) y[i] *= other[i];
    }
    if (p->residual >= 0) {
      const float *residual = row_of(s, p->residual, m) + r0;
      for (int64_t i = 0; i < count; i++) to[i] = residual[i] * p->residual_factor + y[i];
    } else if (to != y) {
      memcpy(to, y, (size_t)count * sizeof(float));
    }
    if (p->check)
      for (int64_t i = 0; i < count; i++) wrong |= (float_bits(to[i]) & 0x7f800000u) == 0x7f800000u;
  }
  if (wrong) atomic_store_explicit(&s->all->wrong, 1, memory_order_relaxed);
}

/* `count` vectors side by side in the form that a kind wants; they may stay where they are. Many are shared out. */
static const void *prepare(const state *s, const product_kind *kind, const float *x, int64_t count, int64_t in) {
  if (!kind->prepared) return x;
  int64_t m = 0, end = count, bytes = kind->prepared(in);
  char *to = s->few ? s->scratch : s->common;
  if (!s->few) share(s, count, 1, &m, &end);
  for (; m < end; m++) kind->prepare(x + m * in, in, to + m * bytes);
  if (!s->few) wait_for_all(s);
  return to;
}

static const panel_kind *panels_of(const run *r, const matrix *w) {
  const panel_kind *panels = product_kinds[w->kind]->panels;
  return r->pieces && panels && panels->bytes(w->in) ? panels : 0;
}

/* The same for a prompt, whose vectors lie in panels. */
static void multiply_panels(const state *s, const product_step *op, const panel_kind *kind) {
  int64_t from, to, in = op->parts[0].w.in, count = s->run->rows, bytes = kind->bytes(in);
  share(s, (count + PANEL - 1) / PANEL, 1, &from, &to);
  for (int64_t n = from; n < to; n++) {
    int64_t some = count - n * PANEL < PANEL ? count - n * PANEL : PANEL;
    kind->panel(row_of(s, op->from, n * PANEL), in, some, s->common + n * bytes);
  }
  wait_for_all(s);
  for (int64_t n = 0; n < op->count; n++) {
    const part *p = op->parts + n;
    int64_t r0, r1;
    share(s, p->w.out, product_kinds[p->w.kind]->tile, &r0, &r1);
    kind->product(&p->w, s->common, count, r0, r1, row_of(s, p->raw, 0), s->tape->buffer[p->raw].width);
    finish(s, p, r0, r1);
  }
}

static void multiply(const state *s, const product_step *op) {
  const matrix *first = &op->parts[0].w;
  const product_kind *kind = product_kinds[first->kind];
  const panel_kind *panels = panels_of(s->run, first);
  if (panels) {
    multiply_panels(s, op, panels);
    return;
  }
  int64_t bytes = kind->prepared ? kind->prepared(first->in) : first->in * (int64_t)sizeof(float), count = s->run->rows;
  int64_t some = !s->run->pieces ? count : ROOM / bytes < 8 ? 8 : ROOM / bytes / 8 * 8;
  const void *x = prepare(s, kind, row_of(s, op->from, 0), s->run->rows, first->in);
  for (int64_t n = 0; n < op->count; n++) {
    const part *p = op->parts + n;
    int64_t r0, r1;
    share(s, p->w.out, kind->tile, &r0, &r1);
    int64_t width = s->tape->buffer[p->raw].width;
    for (int64_t m = 0; m < count; m += some)
      product_kinds[p->w.kind]->product(&p->w, (const char *)x + m * bytes, count - m < some ? count - m : some, r0, r1,
                                        row_of(s, p->raw, m), width);
    finish(s, p, r0, r1);
  }
}

static void route(const state *s, const route_step *op) {
  int64_t m, end;
  for (rows_to_fill(s, op->to, &m, &end); m < end; m++) {
    const float *score = row_of(s, op->from, m);
    float *to = row_of(s, op->to, m), most = score[0], sum = 0, chosen = 0;
    for (int64_t i = 1; i < op->count; i++) most = score[i] > most ? score[i] : most;
    for (int64_t i = 0; i < op->count; i++) sum += exp_of(score[i] - most);
    for (int64_t n = 0; n < op->active; n++) {
      int64_t best = -1;
      for (int64_t i = 0; i < op->count; i++) {
        int taken = 0;
        for (int64_t j = 0; j < n; j++) taken |= (int64_t)to[j] == i;
        if (!taken && (best < 0 || score[i] > score[best])) best = i;
      }
      to[n] = (float)best;
      to[op->active + n] = exp_of(score[best] - most) / sum;
      chosen += to[op->active + n];
    }
    if (op->normalised)
      for (int64_t n = 0; n < op->active; n++) to[op->active + n] /= chosen;
  }
}

static matrix expert_of(const matrix *first, int64_t bytes, int64_t number) {
  matrix w = *first;
  w.data = (const char *)first->data + number * bytes;
  return w;
}

static void experts(const state *s, const experts_step *op) {
  const product_kind *kind = product_kinds[op->gate.kind];
  int64_t r0, r1, ff = op->gate.out, width = op->down.out;
  const void *x = prepare(s, kind, row_of(s, op->from, 0), s->run->rows, op->gate.in);
  int64_t bytes = kind->prepared ? kind->prepared(op->gate.in) : op->gate.in * (int64_t)sizeof(float);
  share(s, ff, kind->tile, &r0, &r1);
  for (int64_t m = 0; m < s->run->rows; m++)
    for (int64_t n = 0; n < op->active; n++) {
      int64_t number = (int64_t)row_of(s, op->route, m)[n];
      matrix gate = expert_of(&op->gate, op->gate_bytes, number), up = expert_of(&op->up, op->gate_bytes, number);
      float *hidden = row_of(s, op->hidden, m) + n * ff, *other = row_of(s, op->other, m) + n * ff;
      kind->product(&gate, (const char *)x + m * bytes, 1, r0, r1, hidden, ff);
      kind->product(&up, (const char *)x + m * bytes, 1, r0, r1, other, ff);
      activate(op->act, hidden + r0, r1 - r0);
      for (int64_t i = r0; i < r1; i++) hidden[i] *= other[i];
    }
  wait_for_all(s);
  kind = product_kinds[op->down.kind];
  x = prepare(s, kind, row_of(s, op->hidden, 0), s->run->rows * op->active, ff);
  bytes = kind->prepared ? kind->prepared(ff) : ff * (int64_t)sizeof(float);
  share(s, width, kind->tile, &r0, &r1);
  for (int64_t m = 0; m < s->run->rows; m++) {
    const float *chosen = row_of(s, op->route, m), *residual = op->residual < 0 ? 0 : row_of(s, op->residual, m);
    float *raw = row_of(s, op->raw, m), *to = row_of(s, op->to, m);
    for (int64_t i = r0; i < r1; i++) to[i] = residual ? residual[i] : 0.0f;
    for (int64_t n = 0; n < op->active; n++) {
      matrix down = expert_of(&op->down, op->down_bytes, (int64_t)chosen[n]);
      kind->product(&down, (const char *)x + (m * op->active + n) * bytes, 1, r0, r1, raw, width);
      for (int64_t i = r0; i < r1; i++) to[i] += chosen[op->active + n] * raw[i];
    }
  }
}

static void perform(const state *s, const instruction *i) {
  switch (i->operation) {
    case EMBED: embed(s, i->step); break;
    case NORM: normalise(s, i->step); break;
    case PRODUCT: multiply(s, i->step); break;
    case ATTEND: s->run->pieces ? attend_pieces(s, i->step) : attend(s, i->step); break;
    case CROSS: cross(s, i->step); break;
    case ROUTE: route(s, i->step); break;
    case EXPERTS: experts(s, i->step); break;
  }
  if (i->sync == 1 || (i->sync == 2 && !s->few)) wait_for_all(s);
}

static int64_t prepared_bytes(const matrix *w, const run *r, int64_t count) {
  const product_kind *kind = product_kinds[w->kind];
  const panel_kind *panels = panels_of(r, w);
  if (panels) return (count + PANEL - 1) / PANEL * panels->bytes(w->in);
  return kind->prepared ? count * kind->prepared(w->in) : 0;
}

/* Bytes that instruction i needs in the scratch of a thread (`own`) and in that of all. */
static void scratch_of(const instruction *i, const tape *t, const run *r, int64_t *own, int64_t *common) {
  *own = 0, *common = 0;
  if (i->operation == ATTEND) *own = attend_scratch(i->step, r);
  if (i->operation == CROSS) *own = cross_scratch(i->step, r);
  if (i->operation == EMBED) *own = t->buffer[((const embed_step *)i->step)->to].width * (int64_t)sizeof(float);
  if (i->operation == NORM) *own = t->buffer[((const norm_step *)i->step)->to].width * (int64_t)sizeof(float);
  if (i->operation == PRODUCT) *common = prepared_bytes(&((const product_step *)i->step)->parts[0].w, r, r->rows);
  if (i->operation == EXPERTS) {
    const experts_step *op = i->step;
    int64_t down = prepared_bytes(&op->down, r, r->rows * op->active);
    *common = prepared_bytes(&op->gate, r, r->rows);
    *common = down > *common ? down : *common;
  }
  if (is_few(r) && *common > *own) *own = *common;
}

static void scratches(const tape *t, const run *r, int64_t *own, int64_t *common) {
  *own = 0, *common = 0;
  for (int64_t n = 0; n < t->count; n++) {
    int64_t mine, all;
    scratch_of(t->instructions + n, t, r, &mine, &all);
    *own = mine > *own ? mine : *own;
    *common = all > *common ? all : *common;
  }
  int64_t chosen = choose_scratch(t, r);
  *common = chosen > *common ? chosen : *common;
  *own = ALIGNED(*own), *common = ALIGNED(*common);
}

static int64_t buffer_bytes(const tape *t, const run *r, int64_t n) {
  return n == t->logits ? 0 : ALIGNED(t->buffer[n].width * r->rows * (int64_t)sizeof(float));
}

static int64_t bytes_of(const tape *t, const run *r, int64_t own, int64_t common) {
  int64_t bytes = 0;
  for (int64_t n = 0; n < t->buffers; n++) {
    int64_t copies = t->buffer[n].private && is_few(r) ? r->threads : 1;
    bytes += copies * buffer_bytes(t, r, n);
  }
  return bytes + r->threads * own + common + 64;
}

int64_t tape_size(const tape *t, const run *r) {
  int64_t own, common;
  scratches(t, r, &own, &common);
  return bytes_of(t, r, own, common);
}

static int within_reach(const run *r) {
  for (int64_t i = 0; i < r->rows * r->columns; i++)
    if (r->positions[i] >= r->reach) return 0;
  return 1;
}

/* Before the head: the wanted rows of the stream come to its beginning, and are the rows from here on. */
static void gather(state *s, run *tail) {
  const run *r = s->run;
  int64_t bytes = s->tape->buffer[s->tape->stream].width * (int64_t)sizeof(float);
  for (int64_t i = 0; i < r->wanted_count && s->thread == 0; i++)
    if (r->wanted[i] != i) memcpy(row_of(s, s->tape->stream, i), row_of(s, s->tape->stream, r->wanted[i]), (size_t)bytes);
  tail->rows = r->wanted_count;
  s->run = tail;
  wait_for_all(s);
}

int64_t packed_tile(void); /* quant.c */

int64_t tape_reads(const tape *t) {
  if (LANES < 16) return 0;
  for (int64_t n = 0; n < t->count; n++) {
    const instruction *i = t->instructions + n;
    if (i->operation == CROSS || i->operation == ROUTE || i->operation == EXPERTS) return 0;
    const product_step *op = i->step;
    for (int64_t p = 0; i->operation == PRODUCT && p < op->count; p++) {
      const matrix *w = &op->parts[p].w;
      const panel_kind *panels = product_kinds[w->kind]->panels;
      if (!(panels && panels->bytes(w->in)) && !(w->kind >= Q8_0 && w->kind <= Q6_K && packed_tile() > 1))
        return 0;
    }
  }
  return 1;
}

int64_t tape_run(const tape *t, const run *r) {
  shared all;
  int64_t own, common;
  scratches(t, r, &own, &common);
  if (!within_reach(r)) return SHORT_TABLES;
  if (bytes_of(t, r, own, common) > r->room) return SMALL_WORKSPACE;
  if (!in_tables(t, r)) return NO_SUCH_ROW;
  atomic_init(&all.arrived, 0), atomic_init(&all.generation, 0), atomic_init(&all.asleep, 0), atomic_init(&all.wrong, 0);
#pragma omp parallel num_threads((int)r->threads)
  {
    state s = {.tape = t, .run = r, .all = &all, .thread = 0, .threads = 1, .few = is_few(r)};
#ifdef _OPENMP
    s.thread = omp_get_thread_num(), s.threads = omp_get_num_threads();
#endif
    float *buffers[t->buffers];
    char *at = (char *)(((uintptr_t)r->workspace + 63) & ~(uintptr_t)63);
    for (int64_t n = 0; n < t->buffers; n++) {
      int64_t bytes = buffer_bytes(t, r, n), private = t->buffer[n].private && s.few;
      buffers[n] = n == t->logits ? r->logits : (float *)(at + (private ? s.thread * bytes : 0));
      at += bytes * (private ? r->threads : 1);
    }
    s.buffers = buffers, s.common = at, s.scratch = at + common + s.thread * own;
    run tail = *r;
    for (int64_t n = 0; n < t->count; n++) {
      if (n == t->tail && r->pieces) gather(&s, &tail);
      perform(&s, t->instructions + n);
    }
    choose(&s);
  }
  return atomic_load(&all.wrong) ? NOT_FINITE : DONE;
}
