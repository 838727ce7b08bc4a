// What is multiplied in compiled stages: x [rows, depth] times packed weights [columns, depth], int8 to int32, exactly.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace shardline_int8 {

struct Matrices {
    const int8_t* x;     // [rows, depth], row after row `x_stride` apart
    const void* packed;  // [panels, depth / p, kColumns, p]: p numbers of a column lie together, as the kernel wants them
    int32_t* out;        // [rows, columns]
    int64_t rows, columns, depth, x_stride;
};

inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

}  // namespace shardline_int8
