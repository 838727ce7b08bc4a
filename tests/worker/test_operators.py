import pytest
import torch

from worker.operators import OperatorError, is_pointwise, is_view, resolve


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.linear.default",
        "torch.ops.aten.convolution.default",
        "torch.ops.aten.scaled_dot_product_attention.default",
        "torch.ops.aten.index.Tensor",
        "torch.ops.aten.split.Tensor",
        "torch.ops.aten.native_layer_norm.default",
        "torch.ops.aten.gelu.default",
        "torch.ops.aten.einsum.default",
        "torch.ops.prims.convert_element_type.default",
    ],
)
def test_tensor_arithmetic_is_taken(target: str) -> None:
    assert isinstance(resolve(target), torch._ops.OpOverload)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("torch.ops.aten.from_file.default", "touches files"),
        ("torch.ops.aten.relu_.default", "in place"),
        ("torch.ops.aten.add.out", "in place"),
        ("torch.ops.aten.item.default", "depend on the data"),
        ("torch.ops.aten._fbgemm.default", "not in this PyTorch"),
        ("torch.ops.aten._nested_view_from_buffer.default", "does not check"),
        ("torch.ops.aten._unsafe_index.Tensor", "does not check"),
        ("torch.ops.mylib.evil.default", "not one of"),
        ("torch.ops.aten.add", "not one of"),
        ("torch.ops.aten.add.Tensor.x", "not one of"),
        ("torch.ops.aten.__class__.__init__", "not in this PyTorch"),
        ("eval", "not one of"),
    ],
)
def test_everything_else_is_refused_with_the_reason(target: str, reason: str) -> None:
    with pytest.raises(OperatorError, match=reason):
        resolve(target)


def test_no_operator_that_is_taken_is_given_text_of_the_file_but_words() -> None:
    taken = []
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        if namespace in {"aten", "prims"}:
            operator, _, overload = rest.partition(".")
            try:
                taken.append(resolve(f"torch.ops.{namespace}.{operator}.{overload or 'default'}"))
            except OperatorError:
                continue
    assert len(taken) > 1000
    texts = {
        argument.name for operator in taken for argument in operator._schema.arguments if "str" in str(argument.type)
    }
    assert not {name for name in texts if "file" in name or "path" in name or "name" in name}


def test_views_and_elementwise_operators_are_told_apart() -> None:
    assert is_view(torch.ops.aten.transpose.int)
    assert not is_view(torch.ops.aten.add.Tensor)
    assert is_pointwise(torch.ops.aten.add.Tensor)
    assert not is_pointwise(torch.ops.aten.mm.default)
