// The product: cut into blocks, which are shared out among threads, and which the kernel above computes one by one; and
// what generated code calls for it.

#include <omp.h>

namespace shardline_int8 {

constexpr int64_t kBlockBytes = 256 << 10;  // of rows: a quarter to a half of a second-level cache

// Of the kernel: kRows of a tile, kColumns of a panel; row_bytes that a row takes in the caches, row_scratch numbers that
// have to be kept for it; block() computes some rows times some panels.
inline bool product(const Matrices& m) {
    if (m.rows == 0 || m.columns == 0 || m.depth == 0) {
        std::fill_n(m.out, m.rows * m.columns, 0);
        return true;
    }
    const int64_t panels = parts(m.columns, kColumns), threads = std::max<int64_t>(1, omp_get_max_threads());
    const int64_t fitting = std::max(kRows, kBlockBytes / row_bytes(m) / kRows * kRows);
    const int64_t high = std::min(fitting, std::max(kRows, parts(parts(m.rows, threads), kRows) * kRows));
    const int64_t down = parts(m.rows, high);
    const int64_t wide = parts(panels, std::max<int64_t>(1, std::min(panels, threads / down)));
    const int64_t across = parts(panels, wide);
    bool sound = true;
#pragma omp parallel num_threads(threads) if (threads > 1 && down * across > 1)
    {
        const std::unique_ptr<int32_t[]> scratch(new (std::nothrow) int32_t[high * row_scratch(m)]);
        if (!scratch) {
#pragma omp atomic write
            sound = false;
        }
#pragma omp for
        for (int64_t task = 0; task < down * across; ++task) {
            const int64_t first = task / across * high, panel = task % across * wide;
            if (scratch) {
                const int64_t count = std::min(high, m.rows - first), last = std::min(panel + wide, panels);
                block(m, first, count, panel, last, scratch.get());
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
    if (aoti_torch_empty_strided(2, sizes, strides, aoti_torch_dtype_int32(), aoti_torch_device_type_cpu(), 0, result)) {
        return AOTI_TORCH_FAILURE;
    }
    failed = aoti_torch_get_data_ptr(*result, &result_data);
    const shardline_int8::Matrices matrices{static_cast<const int8_t*>(x_data), packed_data,
                                            static_cast<int32_t*>(result_data), x_sizes[0], columns, x_sizes[1],
                                            x_strides[0]};
    if (failed || !shardline_int8::product(matrices)) {
        aoti_torch_delete_tensor_object(*result);
        return AOTI_TORCH_FAILURE;
    }
    return AOTI_TORCH_SUCCESS;
}
