/* Products of 8-bit lanes, their sums in 32 bits, and the steps behind them in one pass.
 *
 *   y = s t [(C - z)(W - v)^T] + b,
 *   (C - z)(W - v)^T = C W^T - z (sum W - n v) - v sum C
 *
 * in integers, exact modulo 2^32; steps are applied to whole sums, or segment by segment. A block
 * of 32 tokens by 32 outputs is multiplied at a time, on tile units (AMX) or on vector units
 * (AVX-512 VNNI, which takes unsigned lanes on one side). Tokens are taken so many at a time, and
 * channels as well, that the input in work stays in the core's second cache.
 */
#include "lanes.h"

#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    const uint8_t *lanes;       /* input */
    const float *steps;         /* [tokens or 1][segments or 1] */
    const int32_t *zeros;       /* as steps; NULL where all are `zero` */
    const int32_t *sums;        /* [tokens][segments], of the lanes; NULL without weight_zeros */
    const uint8_t *weight;
    const int8_t *shifts;       /* [segments][columns], taken off 4-bit codes; NULL at 8 bits */
    const float *weight_steps;  /* [segments][columns] */
    const int32_t *weight_sums; /* [segments][columns], sum W - n v */
    const int32_t *weight_zeros; /* [segments][columns]; NULL where all are 0 */
    const float *bias;          /* [columns] */
    void *out;                  /* [tokens][outputs] */
    long tokens, outputs, columns, segments, tiles; /* columns: outputs padded; tiles a segment */
    long token_stride, segment_stride;              /* of steps and zeros */
    int32_t zero;
    int32_t dtype, amx;
} Product;

enum { TOKENS = 256, CHANNEL_TILES = 48 };

static void multiply_vnni(const uint8_t *a, const int8_t *b, long tiles, int32_t *t, int more)
{
    for (int row = 0; row < SIDE; row += 8) {
        __m512i sum[8][2];
        for (int i = 0; i < 8; i++)
            for (int h = 0; h < 2; h++)
                sum[i][h] = more ? _mm512_load_si512(t + (row + i) * SIDE + 16 * h)
                                 : _mm512_setzero_si512();
        for (long k = 0; k < tiles; k++)
            for (int word = 0; word < 16; word++) {
                const int8_t *w = b + k * BLOCK + word * TILE;
                const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + BLOCK / 2);
                const uint8_t *x = a + k * BLOCK + row * TILE + 4 * word;
                for (int i = 0; i < 8; i++) {
                    int32_t four;
                    memcpy(&four, x + i * TILE, 4);
                    const __m512i all = _mm512_set1_epi32(four);
                    sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], all, w0);
                    sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], all, w1);
                }
            }
        for (int i = 0; i < 8; i++)
            for (int h = 0; h < 2; h++)
                _mm512_store_si512(t + (row + i) * SIDE + 16 * h, sum[i][h]);
    }
}

#ifdef __AMX_INT8__
static void multiply_amx(const uint8_t *a, const int8_t *b, long tiles, int32_t *t, int more)
{
    if (more) {
        _tile_loadd(0, t, 4 * SIDE);
        _tile_loadd(1, t + 16, 4 * SIDE);
        _tile_loadd(2, t + 16 * SIDE, 4 * SIDE);
        _tile_loadd(3, t + 16 * SIDE + 16, 4 * SIDE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long k = 0; k < tiles; k++) {
        _tile_loadd(4, a + k * BLOCK, TILE);
        _tile_loadd(6, b + k * BLOCK, TILE);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, b + k * BLOCK + BLOCK / 2, TILE);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, a + k * BLOCK + BLOCK / 2, TILE);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, t, 4 * SIDE);
    _tile_stored(1, t + 16, 4 * SIDE);
    _tile_stored(2, t + 16 * SIDE, 4 * SIDE);
    _tile_stored(3, t + 16 * SIDE + 16, 4 * SIDE);
}

static void tiles_on(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape __attribute__((aligned(64)));
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = TILE;
        shape.rows[i] = 16;
    }
    _tile_loadconfig(&shape);
}
#endif

/* Ask the system for the tile registers; 0 where this process may use them from now on. */
int allow_amx(void)
{
#if defined(__AMX_INT8__) && defined(__linux__)
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    return (int)syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
#else
    return -1;
#endif
}

static void multiply(const Product *p, const uint8_t *a, const int8_t *b, long tiles, int32_t *t,
                     int more)
{
#ifdef __AMX_INT8__
    if (p->amx) {
        multiply_amx(a, b, tiles, t, more);
        return;
    }
#endif
    multiply_vnni(a, b, tiles, t, more);
}

/* 4-bit codes of some tiles of a block of outputs to lanes; `tile` is the first one's number. */
static void widen(const Product *p, long column, long tile, long tiles, int8_t *out)
{
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *in = p->weight + (column / SIDE * p->segments * p->tiles + tile) * (BLOCK / 2);
    const __m512i spread = _mm512_set_epi32(0x0F0F0F0F, 0x0E0E0E0E, 0x0D0D0D0D, 0x0C0C0C0C,
        0x0B0B0B0B, 0x0A0A0A0A, 0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505,
        0x04040404, 0x03030303, 0x02020202, 0x01010101, 0);
    for (long k = 0; k < tiles; k++) {
        const int8_t *shift = p->shifts + (tile + k) / p->tiles * p->columns + column;
        const __m512i s0 = _mm512_shuffle_epi8(
            _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)shift)), spread);
        const __m512i s1 = _mm512_shuffle_epi8(
            _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(shift + 16))), spread);
        for (int word = 0; word < 16; word++, in += TILE, out += TILE) {
            const __m512i both = _mm512_loadu_si512(in);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            _mm512_store_si512(out, _mm512_sub_epi8(_mm512_and_si512(both, low), s0));
            _mm512_store_si512(out + BLOCK / 2, _mm512_sub_epi8(high, s1));
        }
        out += BLOCK / 2;
    }
}

static inline __m512 centred(const Product *p, const int32_t *t, long token, long segment,
                             long column)
{
    __m512i sum = _mm512_load_si512(t);
    const long place = segment * p->columns + column;
    const int32_t zero = p->zeros
        ? p->zeros[token * p->token_stride + segment * p->segment_stride] : p->zero;
    if (zero)
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(
            _mm512_set1_epi32(zero), _mm512_loadu_si512(p->weight_sums + place)));
    if (p->weight_zeros)
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(
            _mm512_set1_epi32(p->sums[token * p->segments + segment]),
            _mm512_loadu_si512(p->weight_zeros + place)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(p->weight_steps + place));
}

/* Add a segment's sums, with its steps, to those of the segments before. */
static void gather(const Product *p, const int32_t *t, float *sums, long token, long column,
                   long segment, int more)
{
    const long rows = least(SIDE, p->tokens - token);
    for (long r = 0; r < rows; r++)
        for (int h = 0; h < SIDE; h += 16) {
            const __m512 y = centred(p, t + r * SIDE + h, token + r, segment, column + h);
            const __m512 before = more ? _mm512_load_ps(sums + r * SIDE + h)
                                       : _mm512_setzero_ps();
            const float step = p->segment_stride
                ? p->steps[(token + r) * p->token_stride + segment] : 1.0f;
            _mm512_store_ps(sums + r * SIDE + h, _mm512_fmadd_ps(y, _mm512_set1_ps(step), before));
        }
}

#ifdef __AMX_INT8__
/* All segments of some tiles, where no zero point is left in the lanes: a quarter of the block at a
 * time, so that its sums stay in registers while two tiles take turns. */
static void gather_amx(const Product *p, const uint8_t *a, const int8_t *b, long tiles, float *sums,
                       long token, long column, long segment, int more)
{
    int32_t t[2][16 * 16] __attribute__((aligned(64)));
    const long rows = least(SIDE, p->tokens - token);
    for (int quarter = 0; quarter < 4; quarter++) {
        const int down = quarter / 2 * 16, right = quarter % 2 * 16;
        const uint8_t *x = a + down * TILE;
        const int8_t *w = b + right / 16 * (BLOCK / 2);
        float *place = sums + down * SIDE + right;
        __m512 sum[16];
        for (int r = 0; r < 16; r++)
            sum[r] = more ? _mm512_load_ps(place + r * SIDE) : _mm512_setzero_ps();
        for (long k = 0, i = segment; k < tiles; k += p->tiles, i++) {
            int32_t *found = t[i % 2];
            _tile_zero(0);
            for (long j = k; j < k + p->tiles; j++) {
                _tile_loadd(4, x + j * BLOCK, TILE);
                _tile_loadd(6, w + j * BLOCK, TILE);
                _tile_dpbssd(0, 4, 6);
            }
            _tile_stored(0, found, TILE);
            const __m512 step = _mm512_loadu_ps(p->weight_steps + i * p->columns + column + right);
            if (!p->segment_stride) {
                for (int r = 0; r < 16; r++)
                    sum[r] = _mm512_fmadd_ps(
                        _mm512_cvtepi32_ps(_mm512_load_si512(found + r * 16)), step, sum[r]);
                continue;
            }
            for (int r = 0; r < 16; r++) {
                const long at = token + least(down + r, rows - 1);
                const __m512 y = _mm512_mul_ps(
                    _mm512_cvtepi32_ps(_mm512_load_si512(found + r * 16)), step);
                sum[r] = _mm512_fmadd_ps(
                    y, _mm512_set1_ps(p->steps[at * p->token_stride + i]), sum[r]);
            }
        }
        for (int r = 0; r < 16; r++) _mm512_store_ps(place + r * SIDE, sum[r]);
    }
}
#endif

static void gather_all(const Product *p, const uint8_t *a, const int8_t *b, long tiles, float *sums,
                       long token, long column, long segment, int more)
{
#ifdef __AMX_INT8__
    if (p->amx && !p->zeros && !p->zero && !p->weight_zeros) {
        gather_amx(p, a, b, tiles, sums, token, column, segment, more);
        return;
    }
#endif
    int32_t t[SIDE * SIDE] __attribute__((aligned(64)));
    for (long i = 0; i < tiles; i += p->tiles, segment++) {
        multiply(p, a + i * BLOCK, b + i * BLOCK, p->tiles, t, 0);
        gather(p, t, sums, token, column, segment, more || i);
    }
}

/* The token's step where segments have none of their own, and the bias; sums is t where there is
 * one segment, the gathered ones otherwise. */
static void finish(const Product *p, const int32_t *t, const float *sums, long token, long column)
{
    const long rows = least(SIDE, p->tokens - token);
    for (int h = 0; h < SIDE; h += 16) {
        const long left = p->outputs - column - h;
        if (left <= 0) return;
        const __m512 bias = _mm512_loadu_ps(p->bias + column + h);
        for (long r = 0; r < rows; r++) {
            __m512 y = sums ? _mm512_load_ps(sums + r * SIDE + h)
                            : centred(p, t + r * SIDE + h, token + r, 0, column + h);
            if (!p->segment_stride)
                y = _mm512_mul_ps(y, _mm512_set1_ps(p->steps[(token + r) * p->token_stride]));
            store_values(p->out, (token + r) * p->outputs + column + h, p->dtype, mask_of(left),
                         _mm512_add_ps(y, bias));
        }
    }
}

/* Tiles of channels that are taken at a time: whole segments where there are several. */
static long tiles_at_once(const Product *p)
{
    if (p->segments == 1) return CHANNEL_TILES;
    return (CHANNEL_TILES < p->tiles ? 1 : CHANNEL_TILES / p->tiles) * p->tiles;
}

/* Bytes that `product` works in for so many blocks of outputs. */
long product_scratch(const Product *p, long blocks)
{
    const long step = tiles_at_once(p);
    const long kept = p->segments * p->tiles > step ? blocks * TOKENS * SIDE * 4 : 0;
    return kept + (p->shifts ? step * BLOCK : 0);
}

/* Compute the blocks of outputs from `first` to `last`.
 *
 * scratch: product_scratch bytes, 64-byte aligned.
 */
void product(const Product *p, long first, long last, uint8_t *scratch)
{
    int32_t t[SIDE * SIDE] __attribute__((aligned(64)));
    float own[SIDE * SIDE] __attribute__((aligned(64)));
    const long all = p->segments * p->tiles, whole = p->segments == 1;
    const long step = tiles_at_once(p);
    const int apart = all > step;
    int32_t *kept = (int32_t *)scratch;
    int8_t *wide = (int8_t *)(scratch + (apart ? (last - first) * TOKENS * SIDE * 4 : 0));
#ifdef __AMX_INT8__
    if (p->amx) tiles_on();
#endif
    for (long start = 0; start < p->tokens; start += TOKENS) {
        const long stop = least(p->tokens, start + TOKENS);
        for (long k = 0; k < all; k += step) {
            const long tiles = least(step, all - k);
            const int more = k > 0, done = k + tiles == all;
            for (long block = first; block < last; block++) {
                const long column = block * SIDE;
                const int8_t *w = (const int8_t *)p->weight + (block * all + k) * BLOCK;
                if (p->shifts) {
                    widen(p, column, k, tiles, wide);
                    w = wide;
                }
                const long lines = tiles * BLOCK / TILE / (p->shifts ? 2 : 1);
                const long some = lines / ((stop - start + SIDE - 1) / SIDE) + 1;
                const uint8_t *next = p->weight
                    + (p->shifts ? BLOCK / 2 : BLOCK) * ((block + 1) * all + k);
                for (long token = start; token < stop; token += SIDE) {
                    const uint8_t *a = p->lanes + (token / SIDE * all + k) * BLOCK;
                    int32_t *held = apart
                        ? kept + ((block - first) * TOKENS + token - start) * SIDE : NULL;
                    if (whole) {
                        int32_t *sums = held ? held : t;
                        multiply(p, a, w, tiles, sums, more);
                        if (done) finish(p, sums, NULL, token, column);
                    } else {
                        float *sums = held ? (float *)held : own;
                        gather_all(p, a, w, tiles, sums, token, column, k / p->tiles, more);
                        if (done) finish(p, t, sums, token, column);
                    }
                    if (block + 1 < last)
                        for (long i = 0; i < some; i++, next += TILE)
                            _mm_prefetch((const char *)next, _MM_HINT_T1);
                }
            }
        }
    }
#ifdef __AMX_INT8__
    if (p->amx) _tile_release();
#endif
}
