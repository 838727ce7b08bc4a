import contextlib
from pathlib import Path

import pytest
import sympy  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Mod

from worker.expression import ExpressionError, evaluate, parse, rename, solve, symbol, symbols

VALUES = {"s1": 7, "s2": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("s1", 7),
        ("-1*s1 + 9", 2),
        ("4*s1", 28),
        ("s1*s2 + 1", 22),
        ("((s1 + 1)//2)", 4),
        ("s1**2", 49),
        ("Mod(s1, 4)", 3),
        ("Max(3, s1)", 7),
        ("Min(3, s1)", 3),
        ("Add(Mul(Integer(4), Symbol('s1', positive=True, integer=True)), Integer(1))", 29),
        ("FloorDiv(Symbol('s1', positive=True, integer=True), Integer(2))", 3),
        ("Pow(Symbol('s1', positive=True, integer=True), Integer(2))", 49),
    ],
)
def test_arithmetic_over_sizes_is_read_and_computed(text: str, value: int) -> None:
    assert evaluate(parse(text), VALUES) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "1.5",
        "True",
        "'s1'",
        "s1.real",
        "s1[0]",
        "lambda: 1",
        "[s1]",
        "s1 if s2 else 1",
        "s1 and s2",
        "s1 / 2",
        "s1 << 2",
        "(lambda: 1)()",
        "__import__('os').getcwd()",
        "open('x')",
        "exec('x')",
        "Symbol('__import__(1)')",
        "Symbol(*[1])",
        "Symbol('s1').func",
        "Integer('1')",
        "u0",
        "Symbol('u0', integer=True)",
        "1//0",
        "Mod(s1)",
        "Mod(s1, 0)",
        "9**9**9",
        "s1**99999",
        "s1**s2",
        "Pow(s1, Integer(-1))",
        "9" * 400,
        "99999999999*99999999999",
        "(" * 300 + "s1" + ")" * 300,
        "+".join(["s1"] * 600),
        "s1\0",
        "Rational(1, 2)",
        "Add(s1, *s2)",
        "Add(s1, evaluate=False)",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        parse(text)


def test_reading_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    with pytest.raises(ExpressionError):
        parse(f"Symbol(open({str(marker)!r}, 'w').name)")
    assert not marker.exists()


_ATOMS = st.one_of(st.sampled_from([symbol("s1"), symbol("s2")]), st.integers(1, 9).map(sympy.Integer))
_SIZES = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(2, 5)).map(lambda pair: FloorDiv(pair[0], sympy.Integer(pair[1]))),
        st.tuples(inner, st.integers(2, 5)).map(lambda pair: Mod(pair[0], sympy.Integer(pair[1]))),
    ),
    max_leaves=5,
)


@given(_SIZES)
def test_what_torch_export_writes_and_what_manifests_write_mean_the_same(size: sympy.Expr) -> None:
    expected = int(size.subs({symbol(name): value for name, value in VALUES.items()}))
    written = rename(size, {"s1": "batch", "s2": "sequence"})
    renamed = {"batch": 7, "sequence": 3}
    with contextlib.suppress(ExpressionError):  # powers of sums are not taken
        assert evaluate(parse(sympy.srepr(size)), VALUES) == expected
        assert evaluate(written if isinstance(written, int) else parse(written), renamed) == expected


def test_axes_are_printed_by_their_names() -> None:
    assert rename(4 * symbol("s2"), {"s2": "sequence"}) == "4*sequence"
    assert rename(symbol("s1"), {"s1": "batch"}) == "batch"
    assert rename(384, {}) == 384


def test_a_size_is_solved_for_its_symbol() -> None:
    assert solve(4 * symbol("s1") + 2) == ("s1", 4, 2)
    assert solve(symbol("s1")) == ("s1", 1, 0)
    assert solve(symbol("s1") * symbol("s2")) is None
    assert solve(parse("s1//2")) is None
    assert solve(3) is None
    assert symbols(parse("s1*s2 + 1")) == {"s1", "s2"}
