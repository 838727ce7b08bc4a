// The product on x86 processors with AVX2 but without VNNI.
//
// Numbers are widened to 16 bits, in blocks that stay in the caches, and multiplied and added in pairs (vpmaddwd): twice
// the multiplications of a fused fp32 one, and none of the saturation of vpmaddubsw. Blocking as in Goto and van de
// Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).

#include <immintrin.h>

namespace shardline_int8 {

constexpr int64_t kRows = 5;           // of a tile: with 16 columns, 10 of 16 registers hold sums
constexpr int64_t kColumns = 16;       // of a tile, and of a panel of packed weights
constexpr int64_t kPanelPairs = 256;   // depth of a panel at a time: 16 KiB in 16 bits, half of a first-level cache

// Sums are variables of their own, and the order of instructions is written down: compilers would move the instructions
// apart until sums no longer fit into registers, and keep an array of sums in memory.
#define SHARDLINE_ADD(row, left, right)                                                                        \
    if constexpr (R > row)                                                                                     \
        asm("vpbroadcastd %[a], %[x]\n\t"                                                                      \
            "vpmaddwd %[b0], %[x], %[y]\n\t"                                                                   \
            "vpaddd %[y], %[s0], %[s0]\n\t"                                                                    \
            "vpmaddwd %[b1], %[x], %[x]\n\t"                                                                   \
            "vpaddd %[x], %[s1], %[s1]"                                                                        \
            : [s0] "+x"(left), [s1] "+x"(right), [x] "=&x"(x), [y] "=&x"(y)                                    \
            : [a] "m"(rows[row]), [b0] "x"(b0), [b1] "x"(b1))
#define SHARDLINE_PAIR(place)                                                                                  \
    {                                                                                                          \
        const __m256i b0 = _mm256_load_si256(panel + 2 * place), b1 = _mm256_load_si256(panel + 2 * place + 1); \
        SHARDLINE_ADD(0, s0, s1);                                                                              \
        SHARDLINE_ADD(1, s2, s3);                                                                              \
        SHARDLINE_ADD(2, s4, s5);                                                                              \
        SHARDLINE_ADD(3, s6, s7);                                                                              \
        SHARDLINE_ADD(4, s8, s9);                                                                              \
        rows += R;                                                                                             \
    }
#define SHARDLINE_STORE(row, left, right)               \
    if constexpr (R > row) {                            \
        store(out + row * out_stride, left, more);      \
        store(out + row * out_stride + 8, right, more); \
    }

inline void store(int32_t* to, __m256i sums, bool more) {
    auto* place = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(place, more ? _mm256_add_epi32(sums, _mm256_loadu_si256(place)) : sums);
}

// out [R, 16] = rows [pairs, R] times panel [pairs, 16], each number a pair of 16 bits; added to `out` where `more`.
template <int64_t R>
inline void tile(const int32_t* rows, const __m256i* panel, int64_t pairs, int32_t* out, int64_t out_stride, bool more) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0;
    __m256i x, y;
    for (; pairs > 0; pairs -= 2, panel += 4) {
        SHARDLINE_PAIR(0)
        SHARDLINE_PAIR(1)
    }
    SHARDLINE_STORE(0, s0, s1)
    SHARDLINE_STORE(1, s2, s3)
    SHARDLINE_STORE(2, s4, s5)
    SHARDLINE_STORE(3, s6, s7)
    SHARDLINE_STORE(4, s8, s9)
}
#undef SHARDLINE_ADD
#undef SHARDLINE_PAIR
#undef SHARDLINE_STORE

// The same for as many rows as are left, up to kRows.
inline void tile_of(int64_t count, const int32_t* rows, const __m256i* panel, int64_t pairs, int32_t* out,
                    int64_t out_stride, bool more) {
    switch (count) {
        case 1: return tile<1>(rows, panel, pairs, out, out_stride, more);
        case 2: return tile<2>(rows, panel, pairs, out, out_stride, more);
        case 3: return tile<3>(rows, panel, pairs, out, out_stride, more);
        case 4: return tile<4>(rows, panel, pairs, out, out_stride, more);
        default: return tile<kRows>(rows, panel, pairs, out, out_stride, more);
    }
}

// A panel's numbers in 16 bits.
inline void widen(const int8_t* from, int64_t count, __m256i* to) {
    for (int64_t place = 0; place < count; place += 16, ++to) {
        _mm256_store_si256(to, _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + place))));
    }
}

inline int64_t pairs_of(const Matrices& m) { return (m.depth + 3) / 4 * 2; }

inline int32_t pair_of(int8_t low, int8_t high) {
    return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) | static_cast<uint32_t>(high) << 16);
}

// Rows from `first` on, `count` of them, as a tile wants them: [pairs, count], each number a pair of 16 bits.
inline void gather(const Matrices& m, int64_t first, int64_t count, int32_t* to) {
    for (int64_t row = 0; row < count; ++row) {
        const int8_t* from = m.x + (first + row) * m.x_stride;
        int64_t pair = 0;
        for (; pair + 4 <= m.depth / 2; pair += 4) {
            const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 2 * pair)));
            to[pair * count + row] = _mm_cvtsi128_si32(wide);
            to[(pair + 1) * count + row] = _mm_extract_epi32(wide, 1);
            to[(pair + 2) * count + row] = _mm_extract_epi32(wide, 2);
            to[(pair + 3) * count + row] = _mm_extract_epi32(wide, 3);
        }
        for (; pair < m.depth / 2; ++pair) {
            to[pair * count + row] = pair_of(from[2 * pair], from[2 * pair + 1]);
        }
        for (; pair < pairs_of(m); ++pair) {
            to[pair * count + row] = 2 * pair < m.depth ? pair_of(from[2 * pair], 0) : 0;
        }
    }
}

// Rows from `first` on, `count` of them, times the panels from `panel` to `last`. `tiles`: room for the rows in 16 bits.
inline void block(const Matrices& m, int64_t first, int64_t count, int64_t panel, int64_t last, int32_t* tiles) {
    const int64_t pairs = pairs_of(m);
    __m256i weights[kPanelPairs * 2];
    for (int64_t row = 0; row < count; row += kRows) {
        gather(m, first + row, std::min(kRows, count - row), tiles + row * pairs);
    }
    for (; panel < last; ++panel) {
        const int64_t left = m.columns - panel * kColumns;
        for (int64_t from = 0; from < pairs; from += kPanelPairs) {
            const int64_t taken = std::min(kPanelPairs, pairs - from);
            widen(static_cast<const int8_t*>(m.packed) + (panel * pairs + from) * 2 * kColumns, taken * 2 * kColumns, weights);
            for (int64_t row = 0; row < count; row += kRows) {
                const int64_t high = std::min(kRows, count - row);
                const int32_t* rows = tiles + row * pairs + from * high;
                int32_t* out = m.out + (first + row) * m.columns + panel * kColumns;
                if (left >= kColumns) {
                    tile_of(high, rows, weights, taken, out, m.columns, from > 0);
                    continue;
                }
                int32_t sums[kRows * kColumns];
                tile_of(high, rows, weights, taken, sums, kColumns, false);
                for (int64_t place = 0; place < high * left; ++place) {
                    int32_t& to = out[place / left * m.columns + place % left];
                    to = sums[place / left * kColumns + place % left] + (from > 0 ? to : 0);
                }
            }
        }
    }
}

inline int64_t row_bytes(const Matrices& m) { return pairs_of(m) * 4; }  // in 16 bits
inline int64_t row_scratch(const Matrices& m) { return pairs_of(m); }

}  // namespace shardline_int8
