// The product on x86 processors with AVX-512 VNNI: four products and their sum in each 32-bit number of an instruction.
//
// vpdpbusd multiplies unsigned by signed numbers. Weights are packed with 128 added, so that rows are read where they lie;
// what that adds to a sum, 128 times the row's own sum, is taken off before anything is added up. PyTorch's product packs
// the weights anew each time, which at few rows takes as long as the product.

#include <immintrin.h>

namespace shardline_int8 {

constexpr int64_t kRows = 6;      // of a tile: with 64 columns, 24 of 32 registers hold sums
constexpr int64_t kColumns = 64;  // of a tile, and of a panel of packed weights
constexpr int64_t kGroup = 4;     // numbers of a column that lie together

// Sums are variables of their own, and the order of instructions is written down, as in the kernel for AVX2.
#define SHARDLINE_ADD(row, s0, s1, s2, s3, from)                                    \
    if constexpr (R > row)                                                          \
        asm("vpbroadcastd %[a], %[x]\n\t"                                           \
            "vpdpbusd %[x], %[b0], %[t0]\n\t"                                       \
            "vpdpbusd %[x], %[b1], %[t1]\n\t"                                       \
            "vpdpbusd %[x], %[b2], %[t2]\n\t"                                       \
            "vpdpbusd %[x], %[b3], %[t3]"                                           \
            : [t0] "+v"(s0), [t1] "+v"(s1), [t2] "+v"(s2), [t3] "+v"(s3), [x] "=&v"(x) \
            : [a] "m"(*(from)), [b0] "v"(b0), [b1] "v"(b1), [b2] "v"(b2), [b3] "v"(b3))
#define SHARDLINE_GROUP(from0, from1, from2, from3, from4, from5)                                          \
    {                                                                                                      \
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);                 \
        const __m512i b2 = _mm512_loadu_si512(panel + 128), b3 = _mm512_loadu_si512(panel + 192);          \
        SHARDLINE_ADD(0, s00, s01, s02, s03, from0);                                                       \
        SHARDLINE_ADD(1, s10, s11, s12, s13, from1);                                                       \
        SHARDLINE_ADD(2, s20, s21, s22, s23, from2);                                                       \
        SHARDLINE_ADD(3, s30, s31, s32, s33, from3);                                                       \
        SHARDLINE_ADD(4, s40, s41, s42, s43, from4);                                                       \
        SHARDLINE_ADD(5, s50, s51, s52, s53, from5);                                                       \
        panel += kColumns * kGroup;                                                                        \
    }
#define SHARDLINE_BEGIN(row) \
    R > row ? _mm512_set1_epi32(static_cast<int32_t>(-128u * static_cast<uint32_t>(row_sums[row]))) : _mm512_setzero_si512()
#define SHARDLINE_STORE(row, s0, s1, s2, s3)         \
    if constexpr (R > row) {                         \
        int32_t* to = out + row * out_stride;        \
        store(to, s0, left);                         \
        store(to + 16, s1, left - 16);               \
        store(to + 32, s2, left - 32);               \
        store(to + 48, s3, left - 48);               \
    }

// The first `left` of 16 sums.
inline void store(int32_t* to, __m512i sums, int64_t left) {
    if (left >= 16) {
        _mm512_storeu_si512(to, sums);
    } else if (left > 0) {
        _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << left) - 1), sums);
    }
}

using Four = int32_t __attribute__((may_alias, aligned(1)));  // numbers of a row

// out [R, left] = rows [R, depth], `stride` apart, times a panel [depth / 4, 64, 4]; left: columns, more than 64 are 64.
template <int64_t R>
inline void tile(const int8_t* rows, int64_t stride, int64_t depth, const int32_t* row_sums, const uint8_t* panel,
                 int32_t* out, int64_t out_stride, int64_t left) {
    __m512i s00 = SHARDLINE_BEGIN(0), s01 = s00, s02 = s00, s03 = s00;
    __m512i s10 = SHARDLINE_BEGIN(1), s11 = s10, s12 = s10, s13 = s10;
    __m512i s20 = SHARDLINE_BEGIN(2), s21 = s20, s22 = s20, s23 = s20;
    __m512i s30 = SHARDLINE_BEGIN(3), s31 = s30, s32 = s30, s33 = s30;
    __m512i s40 = SHARDLINE_BEGIN(4), s41 = s40, s42 = s40, s43 = s40;
    __m512i s50 = SHARDLINE_BEGIN(5), s51 = s50, s52 = s50, s53 = s50;
    __m512i x;
    const int8_t *low = rows, *high = rows + 3 * stride;
    for (int64_t groups = depth / kGroup; groups > 0; --groups, low += kGroup, high += kGroup) {
        SHARDLINE_GROUP((const Four*)low, (const Four*)(low + stride), (const Four*)(low + 2 * stride), (const Four*)high,
                        (const Four*)(high + stride), (const Four*)(high + 2 * stride))
    }
    if (const int64_t rest = depth % kGroup) {
        int32_t last[kRows] = {};
        for (int64_t row = 0; row < R; ++row) {
            std::memcpy(last + row, rows + row * stride + depth - rest, rest);
        }
        SHARDLINE_GROUP(last, last + 1, last + 2, last + 3, last + 4, last + 5)
    }
    SHARDLINE_STORE(0, s00, s01, s02, s03)
    SHARDLINE_STORE(1, s10, s11, s12, s13)
    SHARDLINE_STORE(2, s20, s21, s22, s23)
    SHARDLINE_STORE(3, s30, s31, s32, s33)
    SHARDLINE_STORE(4, s40, s41, s42, s43)
    SHARDLINE_STORE(5, s50, s51, s52, s53)
}
#undef SHARDLINE_ADD
#undef SHARDLINE_GROUP
#undef SHARDLINE_BEGIN
#undef SHARDLINE_STORE

template <int64_t R>
inline int64_t tile_at(const Matrices& m, int64_t row, int64_t panel, const int32_t* row_sums) {
    const int64_t panel_bytes = parts(m.depth, kGroup) * kColumns * kGroup;
    tile<R>(m.x + row * m.x_stride, m.x_stride, m.depth, row_sums,
            static_cast<const uint8_t*>(m.packed) + panel * panel_bytes, m.out + row * m.columns + panel * kColumns,
            m.columns, m.columns - panel * kColumns);
    return R;
}

inline int64_t tile_of(int64_t count, const Matrices& m, int64_t row, int64_t panel, const int32_t* row_sums) {
    switch (count) {
        case 1: return tile_at<1>(m, row, panel, row_sums);
        case 2: return tile_at<2>(m, row, panel, row_sums);
        case 3: return tile_at<3>(m, row, panel, row_sums);
        case 4: return tile_at<4>(m, row, panel, row_sums);
        case 5: return tile_at<5>(m, row, panel, row_sums);
        default: return tile_at<kRows>(m, row, panel, row_sums);
    }
}

inline int32_t sum_of(const int8_t* row, int64_t depth) {
    __m512i sums = _mm512_setzero_si512();
    const __m512i ones = _mm512_set1_epi8(1);
    int64_t place = 0;
    for (; place + 64 <= depth; place += 64) {
        asm("vpdpbusd %[x], %[ones], %[sums]" : [sums] "+v"(sums) : [x] "m"(*(const __m512i_u*)(row + place)), [ones] "v"(ones));
    }
    int32_t sum = _mm512_reduce_add_epi32(sums);
    for (; place < depth; ++place) {
        sum += row[place];
    }
    return sum;
}

// Rows from `first` on, `count` of them, times the panels from `panel` to `last`. Tiles are nearly of one height: each
// reads the whole panel.
inline void block(const Matrices& m, int64_t first, int64_t count, int64_t panel, int64_t last, int32_t* row_sums) {
    for (int64_t row = 0; row < count; ++row) {
        row_sums[row] = sum_of(m.x + (first + row) * m.x_stride, m.depth);
    }
    for (; panel < last; ++panel) {
        for (int64_t row = 0, tiles = parts(count, kRows); tiles > 0; --tiles) {
            row += tile_of(parts(count - row, tiles), m, first + row, panel, row_sums + row);
        }
    }
}

inline int64_t row_bytes(const Matrices& m) { return m.depth; }
inline int64_t row_scratch(const Matrices&) { return 1; }

}  // namespace shardline_int8
