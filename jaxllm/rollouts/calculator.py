"""A calculator: arithmetic expressions read by a grammar of their own and worked out exactly; nothing is ever run as code."""

import re
from fractions import Fraction

LONGEST = 256  # characters of an expression
MOST_BITS = 2048  # of a numerator or denominator: about 600 digits
DEEPEST = 32  # brackets and signs inside one another
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\*\*|//|[-+*/%^()]))")
_POWERS = ("**", "^")


class CannotSay(ValueError):
    """An expression without a value, or with one that is too large; its text is for whoever asked."""


def calculate(expression: str) -> str:
    """The value of an expression, as text.

    Numbers (12, 0.5), + - * / // % ** (or ^), brackets and signs, with Python's precedence. Values are fractions, so nothing is rounded:
    a whole number is written as one, a value with finitely many decimals as those, any other as p/q.

    Args:
      expression: what to work out; the signs x and the comma of thousands are not read.

    Raises:
      CannotSay: it is no expression, divides by 0, has a power that is no fraction, or its value has more than 2048 bits.
    """
    if len(expression) > LONGEST:
        raise CannotSay(f"an expression of more than {LONGEST} characters")
    return written(_Reader(expression).whole())


def written(value: Fraction) -> str:
    """A fraction as text: 7, 0.125, 1/3."""
    top, bottom = value.numerator, value.denominator
    if bottom == 1:
        return str(top)
    twos, rest = 0, bottom
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    fives = 0
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    places = max(twos, fives)
    if rest != 1 or places > 20:
        return f"{top}/{bottom}"
    digits = str(abs(top) * 10**places // bottom).rjust(places + 1, "0")
    return f"{'-' if top < 0 else ''}{digits[:-places]}.{digits[-places:]}"


class _Reader:
    """Reads an expression from left to right, a function for each level of precedence."""

    def __init__(self, text: str):
        self.tokens, self.at, self.depth = _tokens(text), 0, 0

    def whole(self) -> Fraction:
        found = self._sum()
        if self.at < len(self.tokens):
            raise CannotSay(f"{self.tokens[self.at]!r} where the expression should end")
        return found

    def _next(self, *signs: str) -> str | None:
        """The next token, if it is one of these."""
        if self.at < len(self.tokens) and self.tokens[self.at] in signs:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def _sum(self) -> Fraction:
        found = self._product()
        while sign := self._next("+", "-"):
            found = _bounded(found + self._product() if sign == "+" else found - self._product())
        return found

    def _product(self) -> Fraction:
        found = self._signed()
        while sign := self._next("*", "/", "//", "%"):
            found = _bounded(_PRODUCTS[sign](found, self._signed()))
        return found

    def _signed(self) -> Fraction:
        self.depth += 1
        if self.depth > DEEPEST:
            raise CannotSay(f"more than {DEEPEST} brackets and signs inside one another")
        sign = self._next("+", "-")
        found = self._power() if sign is None else self._signed()
        self.depth -= 1
        return -found if sign == "-" else found

    def _power(self) -> Fraction:
        base = self._one()
        return _power(base, self._signed()) if self._next(*_POWERS) else base

    def _one(self) -> Fraction:
        if self._next("("):
            found = self._sum()
            if not self._next(")"):
                raise CannotSay("a bracket that is not closed")
            return found
        if self.at == len(self.tokens):
            raise CannotSay("a number is missing at the end")
        token = self.tokens[self.at]
        self.at += 1
        if not (token[0].isdigit() or token[0] == "."):
            raise CannotSay(f"{token!r} where a number should be")
        return _bounded(Fraction(token))


def _tokens(text: str) -> list[str]:
    found, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise CannotSay(f"cannot read {text[at:].strip()[:12]!r}")
        found.append(match[1] or match[2])
        at = match.end()
    return found


def _divisor(value: Fraction) -> Fraction:
    if not value:
        raise CannotSay("division by zero")
    return value


_PRODUCTS = {
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / _divisor(b),
    "//": lambda a, b: Fraction(a // _divisor(b)),
    "%": lambda a, b: a % _divisor(b),
}


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CannotSay("a power that is no whole number")
    if not base and exponent < 0:
        raise CannotSay("division by zero")
    if _bits(base) > 1 and abs(exponent) * _bits(base) > 2 * MOST_BITS:  # known before it is worked out
        raise CannotSay(f"a value of more than {MOST_BITS} bits")
    return base if abs(base) == 1 and exponent % 2 else Fraction(1) if abs(base) == 1 else _bounded(base ** int(exponent))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MOST_BITS:
        raise CannotSay(f"a value of more than {MOST_BITS} bits")
    return value
