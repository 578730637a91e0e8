/* What the tape asks of each kind of matrix: y = W x for a few vectors x.

   A kind may want its vectors in another form (`prepare`), which a thread makes for itself or the threads share out. A
   result depends on the row of W and on the vector alone: never on how many vectors there are, nor on the range of rows.
   A new kind is a number of `kinds`, a `product_kind` in a file of its own, and its line in products.c. */
#ifndef STEMMA_PRODUCT_H
#define STEMMA_PRODUCT_H

#include <stdint.h>

enum kinds { F32 = 0, BF16 = 1, F16 = 2, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, INT8, NF4, BLOCKS, KINDS };

/* W, of `out` rows. `data`, `scales` and `extra` are laid out as the kind wants; of F32, BF16 and F16 `data` holds row
   after row, `stride` bytes apart; of Q8_0 to Q6_K what packing.py makes; for the others see stored.c. */
typedef struct {
  int64_t kind, out, in;
  const void *data;
  int64_t stride;
  const void *scales;
  const void *extra;
} matrix;

/* Products of many vectors at once, for kinds that have a way of their own (panels.c). */
typedef struct {
  int64_t (*bytes)(int64_t in); /* of a whole panel; 0: rows of this length are not for it */
  void (*panel)(const float *x, int64_t in, int64_t count, void *to);
  /* As `product` below; `panels`: all vectors, one whole panel after the other. */
  void (*product)(const matrix *w, const void *panels, int64_t count, int64_t r0, int64_t r1, float *y, int64_t y_stride);
} panel_kind;

typedef struct {
  int64_t tile; /* a thread's range of rows begins at a multiple of it; the same of all kinds */
  /* Bytes of a prepared vector of `in` numbers, a multiple of 64; NULL: vectors are read as they are (row after row). */
  int64_t (*prepared)(int64_t in);
  /* One vector in the form that `product` reads. */
  void (*prepare)(const float *x, int64_t in, void *to);
  /* y[m * y_stride + r] = W[r] . x[m] for m < count and r0 <= r < r1. `x`: prepared vectors, one after the other. */
  void (*product)(const matrix *w, const void *x, int64_t count, int64_t r0, int64_t r1, float *y, int64_t y_stride);
  void (*row)(const matrix *w, int64_t r, float *to); /* the numbers of one row; NULL where nobody looks rows up */
  const panel_kind *panels; /* NULL: `product` serves many vectors too */
} product_kind;

extern const product_kind *const product_kinds[KINDS];

#endif
