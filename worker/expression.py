"""Sizes as arithmetic over named axes: "4*sequence", "(sequence + 1)//2".

A program file states its dynamic sizes as text. `parse` reads that text with a grammar of its own: the usual reader,
`sympy.sympify`, evaluates what it is given as Python.
"""

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import sympy  # type: ignore[import-untyped]
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

Size: TypeAlias = int | sympy.Expr
"""A dimension: a number, or an expression over symbols."""

MAX_TEXT: Final = 2_000
MAX_NODES: Final = 400
MAX_EXPONENT: Final = 8

_SYMBOL: Final = re.compile(r"(?!u\d)[A-Za-z_]\w{0,63}", re.ASCII)
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "Add": sympy.Add,
    "Mul": sympy.Mul,
    "FloorDiv": FloorDiv,
    "Mod": Mod,
    "PythonMod": PythonMod,
    "Max": Max,
    "Min": Min,
}


class ExpressionError(ValueError):
    """The text is not arithmetic over sizes."""


def symbol(name: str) -> sympy.Symbol:
    """A size of at least one, under the name that the program file or the manifest uses for it."""
    return sympy.Symbol(name, integer=True, positive=True)


def parse(text: str) -> Size:
    """The size that `text` stands for, as a program file (sympy's own notation) or a manifest writes it.

    Taken: integers, symbols, + - * // % **, parentheses, and the functions of `_FUNCTIONS`. Symbols of sizes that
    depend on the data (u0) are not.

    Raises:
        ExpressionError: anything else, or a text that is too long.
    """
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"a size of {len(text)} characters; at most {MAX_TEXT} are read")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text[:80]!r} is not arithmetic over sizes") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ExpressionError(f"{text[:80]!r}... has more than {MAX_NODES} parts")
    try:
        value = _read(tree.body)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ExpressionError(f"{text[:80]!r} is not arithmetic over sizes: {error}") from error
    return int(value) if value.is_Integer else value


def _read(node: ast.expr) -> sympy.Expr:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return _bounded(sympy.Integer(value))
        case ast.Name(id=name) if _SYMBOL.fullmatch(name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.BinOp(left=ast.Name() as base, op=ast.Pow(), right=ast.Constant(value=int(power))):
            return _power(base, power)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_read(left), _read(right)))
        case ast.Call(func=ast.Name(id=function), args=args, keywords=keywords):
            return _read_call(function, args, keywords)
    raise ValueError(f"found {type(node).__name__}")


def _read_call(function: str, args: list[ast.expr], keywords: list[ast.keyword]) -> sympy.Expr:
    match function, args:
        case "Symbol", [ast.Constant(value=str(name))] if _SYMBOL.fullmatch(name):
            return symbol(name)
        case "Integer", [argument] if not keywords:
            return _read(argument)
        case "Pow", [base, ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int(power))])] if (
            not keywords
        ):
            return _power(base, power)
    if function not in _FUNCTIONS or keywords:
        raise ValueError(f"found a call of {function}")
    return _bounded(_FUNCTIONS[function](*(_read(argument) for argument in args)))


def _power(base: ast.expr, power: int) -> sympy.Expr:
    value = _read(base)
    if not value.is_Symbol or not 0 <= power <= MAX_EXPONENT:
        raise ValueError(f"only a symbol may be raised to a power, of at most {MAX_EXPONENT}")
    return value**power


def _bounded(value: Any) -> sympy.Expr:
    if any(abs(number) >= 2**63 for number in value.atoms(sympy.Integer)):
        raise ValueError("a number of more than 63 bits")
    if not value.atoms() <= value.atoms(sympy.Integer, sympy.Symbol):
        raise ValueError("sizes are whole numbers")
    return value


_OPERATORS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: FloorDiv,
    ast.Mod: Mod,
}


def symbols(size: Size) -> set[str]:
    """Names of the symbols in a size."""
    return set() if isinstance(size, int) else {free.name for free in size.free_symbols}


def evaluate(size: Size, values: Mapping[str, Any]) -> Any:
    """The size's value when symbols have `values` (ints, or `torch.SymInt`s while a stage is being captured)."""
    if isinstance(size, int):
        return size
    if size.is_Integer:
        return int(size)
    if size.is_Symbol:
        return values[size.name]
    operands = [evaluate(arg, values) for arg in size.args]
    combine = _EVALUATE.get(size.func)
    if combine is None:
        raise ExpressionError(f"cannot compute {size}: {size.func.__name__} is not supported in sizes")
    result = operands[0]
    if len(operands) == 1:
        return combine(result, None)
    for operand in operands[1:]:
        result = combine(result, operand)
    return result


_EVALUATE: Final[Mapping[Any, Callable[[Any, Any], Any]]] = {
    sympy.Add: lambda a, b: a + b,
    sympy.Mul: lambda a, b: a * b,
    sympy.Pow: lambda a, b: a**b,
    FloorDiv: lambda a, b: a // b,
    Mod: lambda a, b: a % b,
    PythonMod: lambda a, b: a % b,
    Max: torch.sym_max,
    Min: torch.sym_min,
}


def solve(size: Size) -> tuple[str, int, int] | None:
    """(symbol, factor, offset) where `size` is factor*symbol + offset with a positive factor; None for other sizes."""
    if isinstance(size, int) or len(size.free_symbols) != 1:
        return None
    (unknown,) = size.free_symbols
    offset = size.subs(unknown, 0)
    factor = sympy.simplify((size - offset) / unknown)
    if offset.is_Integer and factor.is_Integer and factor > 0:
        return unknown.name, int(factor), int(offset)
    return None


def rename(size: Size, names: Mapping[str, str]) -> int | str:
    """The size as a manifest writes it, with symbols by the names of their axes: 384, "sequence", "4*sequence"."""
    if isinstance(size, int):
        return size
    return str(size.xreplace({sympy_symbol: symbol(names[sympy_symbol.name]) for sympy_symbol in size.free_symbols}))
