/* Layout of 8-bit lanes, shared by the two sources of this folder.
 *
 * Channels lie in tiles of 64, four of them in a row to a 32-bit word. Tokens and output channels
 * lie in blocks of 32, the last one padded. Where steps are for groups of channels, a segment is a
 * group, and each segment starts a tile; the lanes that fill it up have a weight of zero.
 *
 *   input   [token blocks][tiles][32 tokens][64 channels]
 *   weight  [output blocks][tiles][2][16 words of 4 channels][16 outputs][4 channels]
 *   4 bits  [output blocks][tiles][16 words][16 outputs][4 channels], the first 16 outputs in the
 *           low halves of the bytes, the others in the high ones
 */
#ifndef LANES_H
#define LANES_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { TILE = 64, SIDE = 32, BLOCK = TILE * SIDE };
enum { SINGLE = 0, BFLOAT = 1, HALF = 2 };

static inline long least(long a, long b) { return a < b ? a : b; }

static inline __mmask16 mask_of(long left)
{
    return left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1);
}

/* Rounded to nearest, ties to even; no instruction for it, since some units flush small numbers. */
static inline __m256i to_bfloat(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

static inline __m512 from_bfloat(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline __m512 load_values(const void *at, long i, int dtype, __mmask16 mask)
{
    if (dtype == SINGLE) return _mm512_maskz_loadu_ps(mask, (const float *)at + i);
    const __m256i raw = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)at + i);
    return dtype == BFLOAT ? from_bfloat(raw) : _mm512_cvtph_ps(raw);
}

static inline void store_values(void *at, long i, int dtype, __mmask16 mask, __m512 x)
{
    if (dtype == SINGLE) {
        _mm512_mask_storeu_ps((float *)at + i, mask, x);
        return;
    }
    const __m256i raw = dtype == BFLOAT
        ? to_bfloat(x) : _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16((uint16_t *)at + i, mask, raw);
}

#endif
