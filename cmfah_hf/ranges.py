"""Ranges of numbers in settings, each with the words that an error names it by."""

from collections.abc import Callable

Number = int | float
Range = tuple[Callable[[Number], bool], str]

COUNT: Range = (lambda value: value >= 1, "1 or more")
NOT_NEGATIVE: Range = (lambda value: value >= 0, "0 or more")
POSITIVE: Range = (lambda value: value > 0, "a number above 0")
SHARE: Range = (lambda value: 0 <= value < 1, "a share from 0 to below 1")
SHARE_OR_ALL: Range = (lambda value: 0 <= value <= 1, "a share from 0 to 1")
PART: Range = (lambda value: 0 < value < 1, "a share between 0 and 1")
