/* Panels of vectors (panels.c): what attention and products of many vectors share. */
#ifndef STEMMA_PANELS_H
#define STEMMA_PANELS_H

#include "product.h"
#include "simd.h"

#define ACROSS 3 /* registers of a panel */
#define HIGH (LANES == 16 ? 8 : 4)
#define PANEL (ACROSS * LANES)

/* out[r][v] = sum over k < in of w[r][k] * x[k][v], for v < width, whole registers. Strides are numbers. */
void times_panel(int64_t rows, int64_t width, const float *w, int64_t w_stride, int64_t in, const float *x,
                 int64_t x_stride, float *out, int64_t out_stride);

/* At most PANEL vectors, `stride` numbers apart, as a panel: `in` times as many numbers as whole registers have. */
void to_panel(const float *x, int64_t stride, int64_t in, int64_t count, float *to);

#endif
