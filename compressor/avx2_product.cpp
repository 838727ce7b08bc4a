// The product of int8 matrices on x86 processors with AVX2 but without VNNI: x [rows, depth] times packed weights
// [columns, depth] to int32, exactly.
//
// Numbers are widened to 16 bits, in blocks that stay in the caches, and multiplied and added in pairs (vpmaddwd): twice
// the multiplications of a fused fp32 one, and none of the saturation of vpmaddubsw. Blocking as in Goto and van de
// Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace shardline_int8 {

constexpr int64_t kRows = 5;           // of a tile: with 16 columns, 10 of 16 registers hold sums
constexpr int64_t kColumns = 16;       // of a tile, and of a panel of packed weights
constexpr int64_t kPanelPairs = 256;   // depth of a panel at a time: 16 KiB in 16 bits, half of a first-level cache
constexpr int64_t kBlockBytes = 256 << 10;  // of rows in 16 bits: half of a second-level cache

// Sums are variables of their own, and the order of instructions is written down: compilers would move the instructions
// apart until sums no longer fit into registers, and keep an array of sums in memory.
#define SHARDLINE_ADD(row, left, right)                                                                            \
    if constexpr (R > row)                                                                                         \
        asm("vpbroadcastd %[a], %[x]\n\t"                                                                          \
            "vpmaddwd %[b0], %[x], %[y]\n\t"                                                                       \
            "vpaddd %[y], %[s0], %[s0]\n\t"                                                                        \
            "vpmaddwd %[b1], %[x], %[x]\n\t"                                                                       \
            "vpaddd %[x], %[s1], %[s1]"                                                                            \
            : [s0] "+x"(left), [s1] "+x"(right), [x] "=&x"(x), [y] "=&x"(y)                                        \
            : [a] "m"(*reinterpret_cast<const int32_t*>(rows + row * stride + 2 * pair)), [b0] "x"(b0), [b1] "x"(b1))
#define SHARDLINE_STORE(row, left, right)                    \
    if constexpr (R > row) {                                 \
        store(out + row * out_stride, left, more);           \
        store(out + row * out_stride + 8, right, more);      \
    }

inline void store(int32_t* to, __m256i sums, bool more) {
    auto* place = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(place, more ? _mm256_add_epi32(sums, _mm256_loadu_si256(place)) : sums);
}

// sums = rows [R, 2 * pairs] times panel [pairs, 16, 2]; added to what is in `out` where `more`.
template <int64_t R>
inline void tile(const int16_t* rows, int64_t stride, const int16_t* panel, int64_t pairs, int32_t* out,
                 int64_t out_stride, bool more) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0;
    for (int64_t pair = 0; pair < pairs; ++pair) {
        __m256i x, y;
        const __m256i b0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + pair * 32));
        const __m256i b1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + pair * 32 + 16));
        SHARDLINE_ADD(0, s0, s1);
        SHARDLINE_ADD(1, s2, s3);
        SHARDLINE_ADD(2, s4, s5);
        SHARDLINE_ADD(3, s6, s7);
        SHARDLINE_ADD(4, s8, s9);
    }
    SHARDLINE_STORE(0, s0, s1)
    SHARDLINE_STORE(1, s2, s3)
    SHARDLINE_STORE(2, s4, s5)
    SHARDLINE_STORE(3, s6, s7)
    SHARDLINE_STORE(4, s8, s9)
}
#undef SHARDLINE_ADD
#undef SHARDLINE_STORE

inline void tiles(int64_t count, const int16_t* rows, int64_t stride, const int16_t* panel, int64_t pairs, int32_t* out,
                  int64_t out_stride, bool more) {
    for (; count >= kRows; count -= kRows, rows += kRows * stride, out += kRows * out_stride) {
        tile<kRows>(rows, stride, panel, pairs, out, out_stride, more);
    }
    switch (count) {
        case 4: return tile<4>(rows, stride, panel, pairs, out, out_stride, more);
        case 3: return tile<3>(rows, stride, panel, pairs, out, out_stride, more);
        case 2: return tile<2>(rows, stride, panel, pairs, out, out_stride, more);
        case 1: return tile<1>(rows, stride, panel, pairs, out, out_stride, more);
    }
}

// `count` numbers to 16 bits, with a zero after an odd count.
inline void widen(const int8_t* from, int64_t count, int16_t* to) {
    int64_t place = 0;
    for (; place + 16 <= count; place += 16) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + place));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + place), _mm256_cvtepi8_epi16(narrow));
    }
    for (; place < count; ++place) {
        to[place] = from[place];
    }
    if (count % 2 != 0) {
        to[count] = 0;
    }
}

struct Matrices {
    const int8_t* x;       // [rows, depth], row after row `x_stride` apart
    const int8_t* packed;  // [panels, pairs, 16, 2]
    int32_t* out;          // [rows, columns]
    int64_t rows, columns, depth, x_stride;
};

// Rows from `first` on, `count` of them, times the panels from `panel` to `last`. `wide` holds the rows in 16 bits.
inline void block(const Matrices& m, int64_t first, int64_t count, int64_t panel, int64_t last, int16_t* wide) {
    const int64_t pairs = (m.depth + 1) / 2, stride = 2 * pairs;
    alignas(64) int16_t weights[kPanelPairs * 2 * kColumns];
    for (int64_t row = 0; row < count; ++row) {
        widen(m.x + (first + row) * m.x_stride, m.depth, wide + row * stride);
    }
    for (; panel < last; ++panel) {
        const int64_t left = m.columns - panel * kColumns;
        for (int64_t from = 0; from < pairs; from += kPanelPairs) {
            const int64_t taken = std::min(kPanelPairs, pairs - from);
            widen(m.packed + (panel * pairs + from) * 2 * kColumns, taken * 2 * kColumns, weights);
            int32_t* out = m.out + first * m.columns + panel * kColumns;
            if (left >= kColumns) {
                tiles(count, wide + 2 * from, stride, weights, taken, out, m.columns, from > 0);
                continue;
            }
            for (int64_t row = 0; row < count; ++row, out += m.columns) {
                alignas(32) int32_t sums[kColumns];
                tile<1>(wide + row * stride + 2 * from, stride, weights, taken, sums, kColumns, false);
                for (int64_t column = 0; column < left; ++column) {
                    out[column] = sums[column] + (from > 0 ? out[column] : 0);
                }
            }
        }
    }
}

inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

inline bool product(const Matrices& m) {
    const int64_t stride = parts(m.depth, 2) * 2, panels = parts(m.columns, kColumns);
    const int64_t threads = std::max<int64_t>(1, omp_get_max_threads());
    const int64_t fitting = std::max(kRows, kBlockBytes / (2 * std::max<int64_t>(stride, 1)) / kRows * kRows);
    const int64_t high = std::min(fitting, std::max(kRows, parts(parts(m.rows, threads), kRows) * kRows));
    const int64_t down = parts(m.rows, high);
    const int64_t wide = parts(panels, std::max<int64_t>(1, std::min(panels, threads / std::max<int64_t>(down, 1))));
    const int64_t across = parts(panels, wide);
    bool sound = true;
#pragma omp parallel num_threads(threads) if (threads > 1 && down * across > 1)
    {
        const std::unique_ptr<int16_t[], decltype(&std::free)> rows(
            static_cast<int16_t*>(std::aligned_alloc(64, parts(high * stride * 2, 64) * 64 + 64)), &std::free);
        if (!rows) {
#pragma omp atomic write
            sound = false;
        }
#pragma omp for
        for (int64_t task = 0; task < down * across; ++task) {
            const int64_t first = task / across * high, panel = task % across * wide;
            if (rows) {
                block(m, first, std::min(high, m.rows - first), panel, std::min(panel + wide, panels), rows.get());
            }
        }
    }
    return sound;
}

}  // namespace shardline_int8

extern "C" inline AOTITorchError aoti_torch_cpu_int8_product(AtenTensorHandle x, AtenTensorHandle packed,
                                                             int64_t columns, AtenTensorHandle* result) {
    int64_t *x_sizes = nullptr, *x_strides = nullptr;
    void *x_data = nullptr, *packed_data = nullptr, *result_data = nullptr;
    AOTITorchError failed = aoti_torch_get_sizes(x, &x_sizes) | aoti_torch_get_strides(x, &x_strides) |
                            aoti_torch_get_data_ptr(x, &x_data) | aoti_torch_get_data_ptr(packed, &packed_data);
    if (failed || (x_sizes[1] > 1 && x_strides[1] != 1)) {
        return AOTI_TORCH_FAILURE;
    }
    const int64_t sizes[] = {x_sizes[0], columns}, strides[] = {columns, 1};
    if (aoti_torch_empty_strided(2, sizes, strides, aoti_torch_dtype_int32(), aoti_torch_device_type_cpu(), 0, result) ||
        aoti_torch_get_data_ptr(*result, &result_data)) {
        return AOTI_TORCH_FAILURE;
    }
    const shardline_int8::Matrices matrices{static_cast<const int8_t*>(x_data), static_cast<const int8_t*>(packed_data),
                                            static_cast<int32_t*>(result_data), x_sizes[0], columns, x_sizes[1],
                                            x_strides[0]};
    return shardline_int8::product(matrices) ? AOTI_TORCH_SUCCESS : AOTI_TORCH_FAILURE;
}
