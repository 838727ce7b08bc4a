// What generated code calls: checks the tensors, makes the result, and has the kernel above compute it.

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
    if (failed || !shardline_int8::product<shardline_int8::Kernel>(matrices)) {
        aoti_torch_delete_tensor_object(*result);
        return AOTI_TORCH_FAILURE;
    }
    return AOTI_TORCH_SUCCESS;
}
