/* Sixteen lanes, one for each row of a block of a packed matrix: AVX-512 with VNNI, AVX2, or plain C (PLAIN_C asks for
   it). All three do the same integer arithmetic; their fp32 sums are in the same order.

   `quads` has four bytes a lane, codes of weights in four columns; `quad`, the same four entries of one vector. A dot of
   the two adds four products to each lane of `ints`. */

#ifndef STEMMA_LANES_H
#define STEMMA_LANES_H

#include "simd.h"

INLINE int32_t quad(const int8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return four;
}

#if !defined(PLAIN_C) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HOW "AVX-512 VNNI"
#define TILE 8 /* vectors that one pass over a matrix serves */
#define UNROLL _Pragma("GCC unroll 8")
typedef __m512i quads;
typedef __m512i ints;
typedef __m512 floats;
INLINE quads load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE quads low4(quads v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE quads high4(quads v) { return low4(_mm512_srli_epi16(v, 4)); }
INLINE quads two_above(quads v, quads high, int shift) { /* with bits `shift` and the next of `high` as bits 4 and 5 */
  quads two = _mm512_and_si512(_mm512_srli_epi16(high, shift), _mm512_set1_epi8(3));
  return _mm512_or_si512(v, _mm512_slli_epi16(two, 4));
}
INLINE ints spread(int32_t x) { return _mm512_set1_epi32(x); }
INLINE ints dot(ints sum, quads v, int32_t x) { return _mm512_dpbusd_epi32(sum, v, spread(x)); }
/* of codes 128 above their number: the sum begins at `start8` */
INLINE ints start8(int32_t sum) { return spread(-128 * sum); }
INLINE ints dot8(ints sum, quads v, int32_t x) { return dot(sum, v, x); }
INLINE floats zeros(void) { return _mm512_setzero_ps(); }
INLINE floats same(float x) { return _mm512_set1_ps(x); }
INLINE floats negative(floats a) { return _mm512_sub_ps(zeros(), a); }
INLINE floats wide(ints v) { return _mm512_cvtepi32_ps(v); }
INLINE floats halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE floats small(const uint8_t *p) { return wide(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))); }
INLINE floats small_signed(const uint8_t *p) {
  return wide(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE floats product(floats a, floats b) { return _mm512_mul_ps(a, b); }
INLINE floats scaled(floats a, float b) { return product(a, same(b)); }
INLINE floats fma_(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE void store(float *p, floats v) { _mm512_storeu_ps(p, v); }

#elif !defined(PLAIN_C) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HOW "AVX2"
#define TILE 4
#define UNROLL _Pragma("GCC unroll 8")
typedef struct { __m256i a, b; } quads;
typedef struct { __m256i a, b; } ints;
typedef struct { __m256 a, b; } floats;
#define BOTH(type, expression_a, expression_b) ((type){expression_a, expression_b})
INLINE quads load(const uint8_t *p) {
  return BOTH(quads, _mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32)));
}
INLINE quads low4(quads v) {
  __m256i mask = _mm256_set1_epi8(15);
  return BOTH(quads, _mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask));
}
INLINE quads high4(quads v) { return low4(BOTH(quads, _mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4))); }
INLINE __m256i two_above_half(__m256i v, __m256i high, int shift) {
  __m256i two = _mm256_and_si256(_mm256_srli_epi16(high, shift), _mm256_set1_epi8(3));
  return _mm256_or_si256(v, _mm256_slli_epi16(two, 4));
}
INLINE quads two_above(quads v, quads high, int shift) {
  return BOTH(quads, two_above_half(v.a, high.a, shift), two_above_half(v.b, high.b, shift));
}
INLINE ints spread(int32_t x) { return BOTH(ints, _mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
/* sums of two products have to fit in 16 bits: |code| <= 63, or a sign moved from the code to the entry */
INLINE __m256i dot_half(__m256i sum, __m256i v, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(v, x), _mm256_set1_epi16(1)));
}
INLINE ints dot(ints sum, quads v, int32_t x) {
  __m256i four = _mm256_set1_epi32(x);
  return BOTH(ints, dot_half(sum.a, v.a, four), dot_half(sum.b, v.b, four));
}
INLINE ints start8(int32_t sum) { return spread(0 * sum); }
INLINE __m256i dot8_half(__m256i sum, __m256i v, __m256i x) {
  __m256i code = _mm256_xor_si256(v, _mm256_set1_epi8((char)128));
  return dot_half(sum, _mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
}
INLINE ints dot8(ints sum, quads v, int32_t x) {
  __m256i four = _mm256_set1_epi32(x);
  return BOTH(ints, dot8_half(sum.a, v.a, four), dot8_half(sum.b, v.b, four));
}
INLINE floats same(float x) { return BOTH(floats, _mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE floats zeros(void) { return same(0); }
INLINE floats negative(floats a) { return BOTH(floats, _mm256_sub_ps(zeros().a, a.a), _mm256_sub_ps(zeros().b, a.b)); }
INLINE floats wide(ints v) { return BOTH(floats, _mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)); }
INLINE floats halves(const uint8_t *p) {
  const __m128i *at = (const __m128i *)p;
  return BOTH(floats, _mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1)));
}
INLINE floats small(const uint8_t *p) {
  const __m128i *a = (const __m128i *)p, *b = (const __m128i *)(p + 8);
  return wide(BOTH(ints, _mm256_cvtepu8_epi32(_mm_loadl_epi64(a)), _mm256_cvtepu8_epi32(_mm_loadl_epi64(b))));
}
INLINE floats small_signed(const uint8_t *p) {
  const __m128i *a = (const __m128i *)p, *b = (const __m128i *)(p + 8);
  return wide(BOTH(ints, _mm256_cvtepi8_epi32(_mm_loadl_epi64(a)), _mm256_cvtepi8_epi32(_mm_loadl_epi64(b))));
}
INLINE floats product(floats a, floats b) { return BOTH(floats, _mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)); }
INLINE floats scaled(floats a, float b) { return product(a, same(b)); }
INLINE floats fma_(floats a, floats b, floats c) {
  return BOTH(floats, _mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b));
}
INLINE void store(float *p, floats v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}

#else
#define HOW "plain C"
#define TILE 1
#define UNROLL
typedef struct { uint8_t v[64]; } quads;
typedef struct { int32_t v[16]; } ints;
typedef struct { float v[16]; } floats;
#define EACH(type, n, expression)                                                                                      \
  type made;                                                                                                           \
  for (int i = 0; i < n; i++) made.v[i] = expression;                                                                  \
  return made
INLINE quads load(const uint8_t *p) { EACH(quads, 64, p[i]); }
INLINE quads low4(quads v) { EACH(quads, 64, v.v[i] & 15); }
INLINE quads high4(quads v) { EACH(quads, 64, v.v[i] >> 4); }
INLINE quads two_above(quads v, quads high, int shift) { EACH(quads, 64, v.v[i] | (high.v[i] >> shift & 3) << 4); }
INLINE ints spread(int32_t x) { EACH(ints, 16, x); }
INLINE ints dot(ints sum, quads v, int32_t x) {
  int8_t four[4];
  memcpy(four, &x, 4);
  EACH(ints, 16, sum.v[i] + v.v[4 * i] * four[0] + v.v[4 * i + 1] * four[1] + v.v[4 * i + 2] * four[2] +
                     v.v[4 * i + 3] * four[3]);
}
INLINE ints start8(int32_t sum) { return spread(-128 * sum); }
INLINE ints dot8(ints sum, quads v, int32_t x) { return dot(sum, v, x); }
INLINE floats same(float x) { EACH(floats, 16, x); }
INLINE floats zeros(void) { return same(0); }
INLINE floats negative(floats a) { EACH(floats, 16, 0 - a.v[i]); }
INLINE floats wide(ints v) { EACH(floats, 16, (float)v.v[i]); }
INLINE floats halves(const uint8_t *p) {
  EACH(floats, 16, from_f16((uint16_t)(p[2 * i] | p[2 * i + 1] << 8)));
}
INLINE floats small(const uint8_t *p) { EACH(floats, 16, p[i]); }
INLINE floats small_signed(const uint8_t *p) { EACH(floats, 16, (int8_t)p[i]); }
INLINE floats product(floats a, floats b) { EACH(floats, 16, a.v[i] * b.v[i]); }
INLINE floats scaled(floats a, float b) { EACH(floats, 16, a.v[i] * b); }
INLINE floats fma_(floats a, floats b, floats c) { EACH(floats, 16, a.v[i] * b.v[i] + c.v[i]); }
INLINE void store(float *p, floats v) { memcpy(p, v.v, sizeof v.v); }
#endif

#endif
