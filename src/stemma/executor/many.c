/* One product with many vectors outside of a tape: a prompt is read by PyTorch, module after module. */

#include "step.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define ROOM (1 << 19) /* bytes of prepared vectors that stay in the cache while all rows pass */

static int64_t bytes_of(const product_kind *kind, int64_t in) {
  return kind->prepared ? kind->prepared(in) : in * (int64_t)sizeof(float);
}

int64_t many_size(const many *p) {
  const product_kind *kind = product_kinds[p->w.kind];
  return kind->prepared ? p->count * kind->prepared(p->w.in) + 64 : 0;
}

int64_t many_run(const many *p) {
  const product_kind *kind = product_kinds[p->w.kind];
  int64_t in = p->w.in, out = p->w.out, size = bytes_of(kind, in), some = ROOM / size < 8 ? 8 : ROOM / size / 8 * 8;
  char *room = (char *)(((uintptr_t)p->workspace + 63) & ~(uintptr_t)63);
  const char *x = kind->prepared ? room : (const char *)p->x;
#pragma omp parallel num_threads((int)p->threads)
  {
    int64_t thread = 0, threads = 1, tiles = (out + kind->tile - 1) / kind->tile;
#ifdef _OPENMP
    thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
    if (kind->prepared) {
      for (int64_t m = p->count * thread / threads; m < p->count * (thread + 1) / threads; m++)
        kind->prepare(p->x + m * in, in, room + m * size);
    }
#pragma omp barrier
    int64_t r0 = tiles * thread / threads * kind->tile, r1 = tiles * (thread + 1) / threads * kind->tile;
    for (int64_t m = 0; m < p->count; m += some) {
      int64_t count = p->count - m < some ? p->count - m : some;
      kind->product(&p->w, x + m * size, count, r0, r1 < out ? r1 : out, p->y + m * out, out);
    }
  }
  return 0;
}
