/* Transform and round tokens, one at a time, into lanes.
 *
 * What is computed is what harness.quant.layers computes in single precision: the same operations
 * in the same order, but for the sums of a rotation, whose order differs.
 */
#include "lanes.h"

enum { SCALE = 0, HADAMARD = 1, KRONECKER = 2 };

typedef struct {
    int32_t kind;
    const float *values; /* [width]: divisors, or signs times the factor of the inner rotation */
    const float *outer;  /* [a][a], transposed; NULL for none */
    const float *inner;  /* [b][b]; NULL where it is that of Sylvester, or none */
    long a, b;
} Step;

typedef struct {
    const void *x;      /* [tokens][width] */
    void *exact;        /* [tokens][width], what is rounded; NULL where nobody wants it */
    uint8_t *lanes;
    float *steps;       /* [tokens][segments], [tokens] without groups; not of a fixed range */
    int32_t *zeros;     /* as steps; NULL where none is left in the lanes */
    int32_t *sums;      /* [tokens][segments]; NULL where nobody wants them */
    const Step *chain;
    long links, tokens, width;
    long group;         /* channels that share a step */
    long segment;       /* channels that start a tile of their own, and divide a group */
    float bottom, top;  /* codes */
    float low, high;    /* factors on the range */
    float step, zero;   /* of a fixed range */
    int32_t fixed, symmetric, dtype;
    int32_t centred;    /* lanes are codes less the zero point */
    int32_t offset;     /* added to every lane */
} Rows;

static const float FLOOR = 1e-8f;

/* A product with the inverse of a step is within 1e-4 of the quotient wherever a code of 8 bits is
 * not cut off, so that it is rounded alike unless it lies this far from its whole number. */
static const float NEAR = 0.4999f;

static void butterflies(float *x, long n)
{
    const __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 one = _mm512_set1_ps(1.0f);
    for (long i = 0; i < n; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        for (int h = 1; h < 16; h *= 2) {
            const __mmask16 upper = _mm512_test_epi32_mask(place, _mm512_set1_epi32(h));
            const __m512 sign = _mm512_mask_sub_ps(one, upper, _mm512_setzero_ps(), one);
            const __m512i other = _mm512_xor_si512(place, _mm512_set1_epi32(h));
            v = _mm512_fmadd_ps(v, sign, _mm512_permutexvar_ps(other, v));
        }
        _mm512_storeu_ps(x + i, v);
    }
    long h = 16;
    for (; 4 * h <= n; h *= 4)
        for (long i = 0; i < n; i += 4 * h)
            for (long j = i; j < i + h; j += 16) {
                const __m512 a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + j + h);
                const __m512 c = _mm512_loadu_ps(x + j + 2 * h);
                const __m512 d = _mm512_loadu_ps(x + j + 3 * h);
                const __m512 ab = _mm512_add_ps(a, b), ba = _mm512_sub_ps(a, b);
                const __m512 cd = _mm512_add_ps(c, d), dc = _mm512_sub_ps(c, d);
                _mm512_storeu_ps(x + j, _mm512_add_ps(ab, cd));
                _mm512_storeu_ps(x + j + h, _mm512_add_ps(ba, dc));
                _mm512_storeu_ps(x + j + 2 * h, _mm512_sub_ps(ab, cd));
                _mm512_storeu_ps(x + j + 3 * h, _mm512_sub_ps(ba, dc));
            }
    for (; h < n; h *= 2)
        for (long i = 0; i < n; i += 2 * h)
            for (long j = i; j < i + h; j += 16) {
                const __m512 a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + j + h);
                _mm512_storeu_ps(x + j, _mm512_add_ps(a, b));
                _mm512_storeu_ps(x + j + h, _mm512_sub_ps(a, b));
            }
}

enum { ROWS = 6, VECTORS = 4 };

/* Some rows and up to 64 columns of a product; both numbers are known where it is inlined. */
static inline __attribute__((always_inline)) void some_of_product(
    const float *a, const float *b, float *c, long k, long n, int rows, int vectors,
    __mmask16 last)
{
    __m512 sum[ROWS][VECTORS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = _mm512_setzero_ps();
    for (long j = 0; j < k; j++) {
        __m512 w[VECTORS];
        for (int v = 0; v < vectors; v++)
            w[v] = _mm512_maskz_loadu_ps(v + 1 < vectors ? 0xFFFF : last, b + j * n + 16 * v);
        for (int i = 0; i < rows; i++) {
            const __m512 x = _mm512_set1_ps(a[i * k + j]);
            for (int v = 0; v < vectors; v++) sum[i][v] = _mm512_fmadd_ps(x, w[v], sum[i][v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++)
            _mm512_mask_storeu_ps(c + i * n + 16 * v, v + 1 < vectors ? 0xFFFF : last, sum[i][v]);
}

static inline __attribute__((always_inline)) void columns_of_product(
    const float *a, const float *b, float *c, long m, long k, long n, int vectors, __mmask16 last)
{
    long row = 0;
    for (; row + ROWS <= m; row += ROWS)
        some_of_product(a + row * k, b, c + row * n, k, n, ROWS, vectors, last);
    for (; row < m; row++) some_of_product(a + row * k, b, c + row * n, k, n, 1, vectors, last);
}

/* c = a b; [m][k], [k][n], [m][n]. */
static void small_product(const float *a, const float *b, float *c, long m, long k, long n)
{
    for (long column = 0; column < n; column += 16 * VECTORS) {
        const long left = n - column, vectors = (left + 15) / 16;
        const __mmask16 last = mask_of(left - (least(vectors, VECTORS) - 1) * 16);
        const float *from = b + column;
        float *to = c + column;
        if (vectors == 1) columns_of_product(a, from, to, m, k, n, 1, last);
        else if (vectors == 2) columns_of_product(a, from, to, m, k, n, 2, last);
        else if (vectors == 3) columns_of_product(a, from, to, m, k, n, 3, last);
        else columns_of_product(a, from, to, m, k, n, VECTORS, last);
    }
}

/* One step of the chain on a token; the result lies in the returned one of both buffers. */
static float *apply(const Step *step, float *x, float *other, long width)
{
    if (step->kind == SCALE) {
        for (long i = 0; i < width; i += 16) {
            const __mmask16 mask = mask_of(width - i);
            const __m512 by = _mm512_maskz_loadu_ps(mask, step->values + i);
            const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
            _mm512_mask_storeu_ps(x + i, mask, _mm512_div_ps(v, by));
        }
        return x;
    }
    if (step->kind == HADAMARD)
        for (long i = 0; i < width; i += 16) {
            const __mmask16 mask = mask_of(width - i);
            const __m512 by = _mm512_maskz_loadu_ps(mask, step->values + i);
            const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
            _mm512_mask_storeu_ps(x + i, mask, _mm512_mul_ps(v, by));
        }
    if (step->inner) {
        small_product(x, step->inner, other, step->a, step->b, step->b);
        float *swap = x;
        x = other;
        other = swap;
    } else if (step->kind == HADAMARD && step->b > 1) {
        for (long i = 0; i < step->a; i++) butterflies(x + i * step->b, step->b);
    }
    if (!step->outer) return x;
    small_product(step->outer, x, other, step->a, step->a, step->b);
    return other;
}

static void to_dtype(float *x, long width, int dtype)
{
    if (dtype == SINGLE) return;
    for (long i = 0; i < width; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i);
        const __m512 near = dtype == BFLOAT ? from_bfloat(to_bfloat(v))
            : _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm512_storeu_ps(x + i, near);
    }
}

/* Step and zero point of some channels of a token; a step that is no number where one of them is
 * none, as the simulation has it. */
static void range_of(const Rows *p, const float *x, float *step, float *zero)
{
    __m512 low = _mm512_set1_ps(x[0]), high = low;
    __mmask16 nan = 0;
    for (long i = 0; i < p->group; i += 16) {
        const __m512 v = _mm512_mask_loadu_ps(_mm512_set1_ps(x[0]), mask_of(p->group - i), x + i);
        nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        low = _mm512_min_ps(low, v);
        high = _mm512_max_ps(high, v);
    }
    float least_one = _mm512_reduce_min_ps(low) * p->low;
    float most = _mm512_reduce_max_ps(high) * p->high;
    *zero = 0.0f;
    if (nan) {
        *step = __builtin_nanf("");
        return;
    }
    if (p->symmetric) {
        const float a = __builtin_fabsf(least_one), b = __builtin_fabsf(most);
        *step = (a > b ? a : b) / p->top;
        if (*step < FLOOR) *step = FLOOR;
        return;
    }
    if (least_one > 0) least_one = 0;
    if (most < 0) most = 0;
    *step = (most - least_one) / p->top;
    if (*step < FLOOR) *step = FLOOR;
    float z = __builtin_rintf(-least_one / *step);
    *zero = z < 0 ? 0 : z > p->top ? p->top : z;
}

static void round_token(const Rows *p, float *x, long token)
{
    const long tiles = (p->segment + TILE - 1) / TILE;
    const long segments = p->width / p->segment;
    uint8_t *at = p->lanes + token / SIDE * segments * tiles * BLOCK + token % SIDE * TILE;
    float step = p->step, zero = p->zero;
    for (long segment = 0; segment < segments; segment++) {
        const long start = segment * p->segment;
        if (!p->fixed && start % p->group == 0) range_of(p, x + start, &step, &zero);
        if (!p->fixed && (segment == 0 || p->group < p->width)) {
            const long place = p->group < p->width ? token * segments + segment : token;
            p->steps[place] = step;
            if (p->zeros) p->zeros[place] = (int32_t)zero - 128 + p->offset;
        }
        const __m512 by = _mm512_set1_ps(step), moved = _mm512_set1_ps(zero);
        const __m512 times = _mm512_set1_ps(1.0f / step), edge = _mm512_set1_ps(NEAR);
        const __m512 bottom = _mm512_set1_ps(p->bottom), top = _mm512_set1_ps(p->top);
        const float less = p->centred ? zero : p->symmetric ? 0.0f : 128.0f;
        const __m512 last = _mm512_set1_ps((float)p->offset - less);
        __m512i sum = _mm512_setzero_si512();
        for (long tile = 0; tile < tiles; tile++)
            for (long i = 0; i < TILE; i += 16) {
                const long channel = tile * TILE + i;
                const __mmask16 mask = channel < p->segment ? mask_of(p->segment - channel) : 0;
                const __m512 v = _mm512_maskz_loadu_ps(mask, x + start + channel);
                __m512 near = _mm512_mul_ps(v, times);
                __m512 whole = _mm512_roundscale_ps(near, _MM_FROUND_TO_NEAREST_INT);
                const __m512 off = _mm512_abs_ps(_mm512_sub_ps(near, whole));
                if (_mm512_cmp_ps_mask(off, edge, _CMP_NLT_UQ))
                    whole = _mm512_roundscale_ps(_mm512_div_ps(v, by), _MM_FROUND_TO_NEAREST_INT);
                const __m512 code = _mm512_add_ps(whole, moved);
                /* the bound is second: it is what is left of a value that is no number */
                const __m512 held = _mm512_min_ps(_mm512_max_ps(code, bottom), top);
                const __m512i lane = _mm512_maskz_cvtps_epi32(mask, _mm512_add_ps(held, last));
                sum = _mm512_add_epi32(sum, lane);
                _mm_storeu_si128((void *)(at + (segment * tiles + tile) * BLOCK + i),
                                 _mm512_cvtepi32_epi8(lane));
            }
        if (p->sums) p->sums[token * segments + segment] = _mm512_reduce_add_epi32(sum);
    }
}

/* Tokens from `first` to `last`; work: two times the width, rounded up to 16, in floats. */
void round_rows(const Rows *p, long first, long last, float *work)
{
    const long room = (p->width + 15) / 16 * 16;
    for (long token = first; token < last; token++) {
        float *x = work, *other = work + room;
        for (long i = 0; i < p->width; i += 16)
            _mm512_storeu_ps(x + i, load_values(p->x, token * p->width + i, p->dtype,
                                                mask_of(p->width - i)));
        for (long i = 0; i < p->links; i++) {
            float *found = apply(p->chain + i, x, other, p->width);
            other = found == x ? other : x;
            x = found;
            to_dtype(x, p->width, p->dtype);
        }
        if (p->exact)
            for (long i = 0; i < p->width; i += 16)
                store_values(p->exact, token * p->width + i, p->dtype, mask_of(p->width - i),
                             _mm512_loadu_ps(x + i));
        round_token(p, x, token);
    }
}
