"""The form of all errors: one printable line, with any name in it."""

import pickle

from cmfah_hf.errors import CMFAHError, DataError


def test_a_message_is_one_printable_line():
    error = DataError("a\nb\r\u2028\x00\x1b[31m\udcff é 🌊 is missing.")
    assert str(error) == r"a\nb\r\u2028\x00\x1b[31m\udcff é 🌊 is missing."
    assert str(error).encode("utf-8")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert CMFAHError("plain", 3).args == ("plain", 3)
