import struct
import tracemalloc

import pytest

from gateway.codec import decode, encode, parse_infer, wanted_outputs
from protos import inference_pb2 as pb
from tests.effort import counted
from tests.gateway.messages import REFUSED, ROW, contract, given, infer_request
from worker.errors import Internal, InvalidRequest, Unsupported
from worker.nouns import ELEMENT_BYTES, Axis, Tensor, TensorSpec

TYPED = [
    ("BOOL", {"bool_contents": [True, False]}, b"\1\0"),
    ("INT8", {"int_contents": [-1, 5]}, struct.pack("<2b", -1, 5)),
    ("INT16", {"int_contents": [-1, 5]}, struct.pack("<2h", -1, 5)),
    ("INT32", {"int_contents": [-1, 5]}, struct.pack("<2i", -1, 5)),
    ("INT64", {"int64_contents": [-(1 << 40), 5]}, struct.pack("<2q", -(1 << 40), 5)),
    ("UINT8", {"uint_contents": [255, 5]}, struct.pack("<2B", 255, 5)),
    ("UINT16", {"uint_contents": [65535, 5]}, struct.pack("<2H", 65535, 5)),
    ("UINT32", {"uint_contents": [1 << 31, 5]}, struct.pack("<2I", 1 << 31, 5)),
    ("UINT64", {"uint64_contents": [1 << 63, 5]}, struct.pack("<2Q", 1 << 63, 5)),
    ("FP32", {"fp32_contents": [0.5, float("inf")]}, struct.pack("<2f", 0.5, float("inf"))),
    ("FP64", {"fp64_contents": [0.1, -2.0]}, struct.pack("<2d", 0.1, -2.0)),
    ("BYTES", {"bytes_contents": [b"a\0b", b""]}, struct.pack("<I", 3) + b"a\0b" + struct.pack("<I", 0)),
]


@pytest.mark.parametrize("datatype", [*ELEMENT_BYTES, "BYTES"])
def test_raw_bytes_are_passed_on_as_they_came(datatype: str) -> None:
    element = struct.pack("<I", 3) + b"a\0b" if datatype == "BYTES" else b"\1" * ELEMENT_BYTES[datatype]
    data = element * 6
    message = infer_request(given(shape=(2, 3), datatype=datatype), raw=[data])
    assert decode(message, contract(TensorSpec("x", datatype, ("batch", 3)))) == (Tensor("x", datatype, (2, 3), data),)


@pytest.mark.parametrize(("datatype", "fields", "data"), TYPED)
def test_typed_contents_become_the_bytes_that_travel(
    datatype: str, fields: dict[str, list[object]], data: bytes
) -> None:
    contents = pb.InferTensorContents(**fields)  # type: ignore[arg-type]
    message = infer_request(given(shape=(1, 2), datatype=datatype, contents=contents))
    assert decode(message, contract(TensorSpec("x", datatype, ("batch", 2)))) == (Tensor("x", datatype, (1, 2), data),)


def test_tensors_come_out_in_the_signatures_order() -> None:
    both = contract(TensorSpec("a", "INT8", ("batch",)), TensorSpec("b", "INT8", ("batch",)))
    message = infer_request(given("b", (1,), "INT8"), given("a", (1,), "INT8"), raw=[b"B", b"A"])
    assert [(tensor.name, tensor.data) for tensor in decode(message, both)] == [("a", b"A"), ("b", b"B")]


def test_nan_is_a_value_like_any_other() -> None:
    data = struct.pack("<4f", float("nan"), float("-inf"), 0.0, 1.0)
    assert decode(infer_request(given(), raw=[data]), contract())[0].data == data
    typed = pb.InferTensorContents(fp32_contents=[float("nan")] * 4)
    assert len(decode(infer_request(given(contents=typed)), contract())[0].data) == 16


def test_a_tensor_without_elements_needs_no_data_where_the_model_takes_it() -> None:
    empty = contract(TensorSpec("x", "FP32", ("n",)), axes=[Axis("n", minimum=0)])
    assert decode(infer_request(given(shape=(0,)), raw=[b""]), empty)[0].data == b""
    assert decode(infer_request(given(shape=(0,))), empty)[0].data == b""


@pytest.mark.parametrize(("message", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_bad_request_is_refused_with_the_tensors_name(message: pb.ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        decode(message, contract())


def test_an_element_that_does_not_fit_its_type_is_refused() -> None:
    for datatype, fields in (
        ("INT8", pb.InferTensorContents(int_contents=[128])),
        ("UINT16", pb.InferTensorContents(uint_contents=[65536])),
    ):
        with pytest.raises(InvalidRequest, match=f"input 'x' .*does not fit {datatype}"):
            decode(
                infer_request(given(shape=(1,), datatype=datatype, contents=fields)),
                contract(TensorSpec("x", datatype, ("batch",))),
            )


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_typed_contents(datatype: str) -> None:
    message = infer_request(given(shape=(1,), datatype=datatype, contents=pb.InferTensorContents(fp32_contents=[1])))
    with pytest.raises(InvalidRequest, match=f"input 'x' .*{datatype} has no typed contents; send it in raw_input"):
        decode(message, contract(TensorSpec("x", datatype, ("batch",))))


def test_an_overflowing_shape_is_refused_even_where_it_holds_nothing() -> None:
    free = contract(TensorSpec("x", "FP32", ("n", "m", "k")), axes=[Axis("n", 0), Axis("m", 0), Axis("k", 0)])
    for shape in ((1 << 40, 1 << 40, 1), (1 << 62, 0, 4), (0, 1 << 62, 1 << 62)):
        with pytest.raises(InvalidRequest, match=r"input 'x' .*overflows a 64-bit size"):
            decode(infer_request(given(shape=shape), raw=[b""]), free)


def test_a_shape_of_a_million_dimensions_is_refused_before_it_is_multiplied() -> None:
    with pytest.raises(InvalidRequest, match="1000000 dimensions, expected 2"):
        decode(infer_request(given(shape=[1 << 62] * 1_000_000), raw=[ROW]), contract())


def test_a_bool_is_zero_or_one() -> None:
    one = contract(TensorSpec("x", "BOOL", ("batch", 2)))
    with pytest.raises(InvalidRequest, match=r"input 'x' .*a BOOL element is one byte, 0 or 1"):
        decode(infer_request(given(shape=(1, 2), datatype="BOOL"), raw=[b"\1\2"]), one)


BAD_BYTES = [
    ("a length beyond the data", struct.pack("<I", 9) + b"abc" + bytes(4), "element 0 says that it is 9 bytes long; 7"),
    (
        "a length near 4 GiB",
        struct.pack("<I", 0xFFFFFFFF) + bytes(4),
        "element 0 says that it is 4294967295 bytes long",
    ),
    ("too few elements", struct.pack("<I", 4) + bytes(4), "the data ends after 1 of 2 elements"),
    ("half a length", struct.pack("<I", 2) + bytes(2) + b"\0\0", "the data ends after 1 of 2 elements"),
    ("bytes left over", bytes(9), "1 bytes are left over after 2 elements"),
    ("nearly nothing", bytes(4), "4 bytes came, too few for 2 elements"),
]


@pytest.mark.parametrize(("data", "says"), [case[1:] for case in BAD_BYTES], ids=[case[0] for case in BAD_BYTES])
def test_bytes_elements_with_a_bad_length_are_refused(data: bytes, says: str) -> None:
    text = contract(TensorSpec("x", "BYTES", ("batch",)))
    with pytest.raises(InvalidRequest, match=f"input 'x' .*{says}"):
        decode(infer_request(given(shape=(2,), datatype="BYTES"), raw=[data]), text)


def test_shared_memory_is_refused_before_its_missing_data() -> None:
    parameters = {"shared_memory_region": pb.InferParameter(string_param="r")}
    with pytest.raises(Unsupported, match="input 'x' for model 'echo': this server has no shared memory"):
        decode(infer_request(given(parameters=parameters)), contract())


def test_an_input_with_a_parameter_of_the_clients_own_is_read_as_without_it() -> None:
    own = given(parameters={"colour": pb.InferParameter(int64_param=1)})
    assert decode(infer_request(own, raw=[ROW]), contract()) == decode(infer_request(given(), raw=[ROW]), contract())


@pytest.mark.parametrize(
    "message", [b"\x0a\x02\xff\xfe", b"\x2a\x04\x0a\x02\xc3\x28", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 12]
)
def test_a_name_that_is_not_utf8_or_a_broken_message_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a ModelInferRequest, or a name in it is not UTF-8"):
        parse_infer(message)


@pytest.mark.parametrize("field", [b"\x22\x00", b"\x2a\x00", b"\x32\x00", b"\x3a\x00", b"\x78\x01", b"\x7b\x7c"])
def test_a_large_message_of_tiny_fields_is_refused_before_it_is_parsed(field: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="more than 4096 inputs, outputs, parameters, dimensions and raw"):
            parse_infer(field * (1 << 22))
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def nested(*tags: int, data: bytes) -> bytes:
    """`data` inside of fields with these tags, the outermost first."""
    for tag in reversed(tags):
        length, encoded = len(data), bytearray()
        while length > 127:
            encoded.append(length & 127 | 128)
            length >>= 7
        data = bytes((tag, *encoded, length)) + data
    return data


MANY = 1 << 23
INPUT, OUTPUT, SHAPE, CONTENTS, INTS, FLOATS = 0x2A, 0x32, 0x1A, 0x2A, 0x12, 0x32
INSIDE = [
    ("dimensions", nested(INPUT, SHAPE, data=b"\1" * MANY), "more than 4096 .*dimensions"),
    ("dimensions that are not packed", nested(INPUT, data=b"\x18\1" * MANY), "more than 4096 .*dimensions"),
    ("an input's parameters", nested(INPUT, data=b"\x22\0" * MANY), "more than 4096 .*parameters"),
    ("an output's parameters", nested(OUTPUT, data=b"\x12\0" * MANY), "more than 4096 .*parameters"),
    ("texts", nested(INPUT, CONTENTS, data=b"\x42\0" * MANY), "more than 16384 elements in typed contents"),
    ("numbers that are not packed", nested(INPUT, CONTENTS, data=b"\x10\1" * MANY), "more than 16384 elements"),
    ("packed numbers", nested(INPUT, CONTENTS, INTS, data=b"\1" * MANY), "more than 4194304 numbers"),
    ("floats", nested(INPUT, CONTENTS, FLOATS, data=bytes(4 * MANY)), "more than 4194304 numbers"),
    ("two halves of them", 2 * nested(INPUT, CONTENTS, FLOATS, data=bytes(3 * MANY // 2)), "more than 4194304 numbers"),
]


@pytest.mark.parametrize(("message", "says"), [case[1:] for case in INSIDE], ids=[case[0] for case in INSIDE])
def test_a_large_message_with_tiny_things_deep_inside_is_refused_before_it_is_parsed(message: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=says):
            parse_infer(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 3, 1 << 16])
def test_more_texts_than_the_shape_holds_are_refused_before_they_are_put_together(count: int) -> None:
    text = contract(TensorSpec("x", "BYTES", ("batch",)))
    many = given(shape=(2,), datatype="BYTES", contents=pb.InferTensorContents(bytes_contents=[b""] * count))
    with pytest.raises(InvalidRequest, match=rf"{count} elements came in bytes_contents, expected 2: shape \[2\]"):
        decode(infer_request(many), text)


LARGE = [
    infer_request(given(), raw=[bytes(1 << 20)]),
    infer_request(given(contents=pb.InferTensorContents(fp32_contents=[1] * (1 << 20)))),
    infer_request(given(contents=pb.InferTensorContents(int64_contents=range(1 << 17)))),
    infer_request(given(contents=pb.InferTensorContents(bytes_contents=[b"a sentence of some words"] * 10_000))),
]


@pytest.mark.parametrize("large", LARGE, ids=["raw", "floats", "numbers", "texts"])
def test_a_large_tensor_is_no_reason_to_refuse(large: pb.ModelInferRequest) -> None:
    assert parse_infer(large.SerializeToString()) == large


@pytest.mark.parametrize("start", [b"", b"\x0a", b"\x08"])
def test_a_large_message_that_is_one_endless_number_is_refused_at_once(start: bytes) -> None:
    with counted() as effort, pytest.raises(InvalidRequest, match="not a ModelInferRequest"):
        parse_infer(start + b"\xff" * (1 << 22))
    assert effort.lines < 10_000


@pytest.mark.parametrize("end", [b"\x0a\xff\xff\xff\xff\x0f", b"\x0a", b"\x0e", b"\x09\x00"])
def test_a_large_message_that_is_broken_is_told_so(end: bytes) -> None:
    message = infer_request(given(), raw=[bytes(1 << 20)]).SerializeToString() + end
    with pytest.raises(InvalidRequest, match="not a ModelInferRequest"):
        parse_infer(message)


TWO = (TensorSpec("a", "FP32", ("batch",)), TensorSpec("b", "FP32", ("batch",)))


def test_a_client_that_names_no_output_gets_all_of_them() -> None:
    assert tuple(wanted_outputs(infer_request(), contract(outputs=TWO))) == ("a", "b")


def test_a_client_gets_the_outputs_it_names_in_its_order() -> None:
    assert wanted_outputs(infer_request(outputs=["b", "a"]), contract(outputs=TWO)) == ["b", "a"]
    assert wanted_outputs(infer_request(outputs=["b"]), contract(outputs=TWO)) == ["b"]


@pytest.mark.parametrize(
    ("names", "says"),
    [(["c"], "unknown output 'c' for model 'echo'; it gives 'a', 'b'"), (["a", "a"], "output 'a' .*asked for twice")],
)
def test_an_output_that_is_unknown_or_asked_for_twice_is_refused(names: list[str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        wanted_outputs(infer_request(outputs=names), contract(outputs=TWO))


def test_an_output_in_shared_memory_or_as_classes_is_not_supported() -> None:
    for name, parameter, says in (
        ("shared_memory_region", pb.InferParameter(string_param="r"), "no shared memory"),
        ("classification", pb.InferParameter(int64_param=3), "does not classify"),
    ):
        message = infer_request(outputs=["a"])
        message.outputs[0].parameters[name].CopyFrom(parameter)
        with pytest.raises(Unsupported, match=f"output 'a' for model 'echo': .*{says}"):
            wanted_outputs(message, contract(outputs=TWO))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 3_000_000])
def test_an_answer_reads_as_protobuf_whatever_its_size(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    tensors = [Tensor("a", "UINT8", (size,), memoryview(data)), Tensor("b", "FP32", (1,), b"\0\0\x80?")]
    response = pb.ModelInferResponse.FromString(encode("echo", "7", "id", tensors, ["b", "a"]))
    expected = pb.ModelInferResponse(
        model_name="echo", model_version="7", id="id", raw_output_contents=[b"\0\0\x80?", data]
    )
    expected.outputs.add(name="b", datatype="FP32", shape=[1])
    expected.outputs.add(name="a", datatype="UINT8", shape=[size])
    assert response == expected


def test_an_output_that_the_model_did_not_give_is_our_own_fault() -> None:
    with pytest.raises(Internal, match="the model gave no output 'b'"):
        encode("echo", "1", "", [Tensor("a", "FP32", (1,), bytes(4))], ["b"])
