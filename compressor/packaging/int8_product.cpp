// The product of int8 matrices in compiled stages: x [rows, depth] times packed weights [columns, depth] to int32, exactly.
// What is multiplied here is cut into blocks, and these are shared out among threads; a `Kernel`, whose source comes
// between this and `int8_entry.cpp`, computes one.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace shardline_int8 {

constexpr int64_t kBlockBytes = 256 << 10;  // of rows: a quarter to a half of a second-level cache

struct Matrices {
    const int8_t* x;     // [rows, depth], row after row `x_stride` apart
    const void* packed;  // [panels, depth / p, kColumns, p]: p numbers of a column lie together, as the kernel wants them
    int32_t* out;        // [rows, columns]
    int64_t rows, columns, depth, x_stride;
};

inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Kernel: kRows of a tile, kColumns of a panel; row_bytes that a row takes in the caches, row_scratch numbers that a row
// needs to be kept; block() computes some rows times some panels.
template <typename Kernel>
bool product(const Matrices& m) {
    if (m.rows == 0 || m.columns == 0 || m.depth == 0) {
        std::fill_n(m.out, m.rows * m.columns, 0);
        return true;
    }
    constexpr int64_t kRows = Kernel::kRows;
    const int64_t panels = parts(m.columns, Kernel::kColumns), threads = std::max<int64_t>(1, omp_get_max_threads());
    const int64_t fitting = std::max(kRows, kBlockBytes / Kernel::row_bytes(m) / kRows * kRows);
    const int64_t high = std::min(fitting, std::max(kRows, parts(parts(m.rows, threads), kRows) * kRows));
    const int64_t down = parts(m.rows, high);
    const int64_t wide = parts(panels, std::max<int64_t>(1, std::min(panels, threads / down)));
    const int64_t across = parts(panels, wide);
    bool sound = true;
#pragma omp parallel num_threads(threads) if (threads > 1 && down * across > 1)
    {
        const std::unique_ptr<int32_t[]> scratch(new (std::nothrow) int32_t[high * Kernel::row_scratch(m)]);
        if (!scratch) {
#pragma omp atomic write
            sound = false;
        }
#pragma omp for
        for (int64_t task = 0; task < down * across; ++task) {
            const int64_t first = task / across * high, panel = task % across * wide;
            if (scratch) {
                const int64_t count = std::min(high, m.rows - first), last = std::min(panel + wide, panels);
                Kernel::block(m, first, count, panel, last, scratch.get());
            }
        }
    }
    return sound;
}

}  // namespace shardline_int8
