"""The calculator: exact, bounded, and never more than arithmetic."""

import random
from fractions import Fraction

import pytest

from jaxllm.rollouts.calculator import CannotSay, calculate, written

VALUES = {
    "12 + 7": "19",
    " 3*(17-5) ": "36",
    "-2 ** 2": "-4",
    "2 ** 3 ** 2": "512",
    "2^-3": "0.125",
    "7 // 2 + 7 % 2": "4",
    "-7 // 2": "-4",
    "1 / 3": "1/3",
    "0.1 + 0.2": "0.3",
    "-1.50 * 2": "-3",
    "--5": "5",
    "-0.05": "-0.05",
    "10 ** 40 + 1": "1" + "0" * 39 + "1",
    "(-1) ** 999999999999": "-1",
    "0 ** 0": "1",
}
REFUSED = {
    "": "missing at the end",
    "2 +": "missing at the end",
    "2 3": "'3' where the expression should end",
    "(1": "bracket that is not closed",
    "1 / 0": "division by zero",
    "5 % (3 - 3)": "division by zero",
    "0 ** -1": "division by zero",
    "2 ** 0.5": "no whole number",
    "9 ** 9 ** 9": "more than 2048 bits",
    "9" * 200 + "*" + "9" * 50 + " ** 9": "more than 2",
    "__import__('os')": "cannot read",
    "1 if 1 else 2": "cannot read",
    "(" * 99: "inside one another",
    "-" * 99: "inside one another",
    "1+" * 200: "more than 256 characters",
}


@pytest.mark.parametrize("expression", VALUES)
def test_values(expression):
    assert calculate(expression) == VALUES[expression]


@pytest.mark.parametrize("expression", REFUSED)
def test_what_has_no_value_says_why(expression):
    with pytest.raises(CannotSay, match=REFUSED[expression].replace("(", r"\(")):
        calculate(expression)


def test_random_expressions_are_as_python_works_them_out():
    draw = random.Random(0)

    def expression(depth):
        if depth == 0:
            return f"Fraction({draw.randrange(20)})"
        a, b = expression(depth - 1), expression(draw.randrange(depth))
        return draw.choice([f"({a})", f"-{a}", f"{a}+{b}", f"{a} - {b}", f"({a}) * ({b})", f"{a}/{b}", f"{a}//{b}", f"({a}) % ({b})"])

    found = 0
    for _ in range(300):
        text = expression(draw.randrange(5))
        try:
            expected = written(Fraction(eval(text)))
        except ZeroDivisionError:
            expected = None
        if expected is None:
            with pytest.raises(CannotSay, match="zero"):
                calculate(text.replace("Fraction", ""))
        else:
            found += 1
            assert calculate(text.replace("Fraction", "")) == expected, text
    assert found > 150
