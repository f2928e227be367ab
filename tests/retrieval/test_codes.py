import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import as_array, pack, reverse_bit_order, round_for_aqd, sign, unpack

hash_values = (
    st.integers(1, 16)
    .flatmap(
        lambda octets: hnp.arrays(
            np.float32,
            st.tuples(st.integers(0, 6), st.just(8 * octets)),
            elements=st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0]),
        )
    )
    .filter(lambda values: not (np.isin(values, (0, 1)).all() and values.any() and not values.all()))
)


def test_sign_of_zero_is_plus_one():
    codes = sign(np.array([[0.0, -0.0, 0.3, -0.3]]))
    assert codes.dtype == np.int8
    assert codes.tolist() == [[1, 1, 1, -1]]


def test_bit_order_is_little_endian():
    values = -np.ones((1, 16))
    values[0, [0, 3, 8, 15]] = 1
    assert pack(values).tolist() == [[0b00001001, 0b10000001]]


@given(hash_values)
@settings(max_examples=60)
def test_unpack_reverses_pack(values):
    packed = pack(values)
    assert packed.shape == (len(values), values.shape[1] // 8)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack(packed), sign(values))
    np.testing.assert_array_equal(pack(unpack(packed)), packed)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)))
@settings(max_examples=60)
def test_reversing_the_bit_order_twice_changes_nothing(packed):
    reverse = reverse_bit_order(packed)
    assert (reverse.shape, reverse.dtype) == (packed.shape, np.uint8)
    np.testing.assert_array_equal(reverse_bit_order(reverse), packed)
    np.testing.assert_array_equal(np.unpackbits(reverse), np.unpackbits(packed, bitorder="little"))


@given(hash_values)
@settings(max_examples=60)
def test_reversed_codes_have_the_first_bit_first(values):
    np.testing.assert_array_equal(reverse_bit_order(pack(values)), np.packbits(values >= 0, axis=1))


@pytest.mark.parametrize("dtype", ["int8", "float32", "bool"])
def test_only_packed_codes_have_a_bit_order(dtype):
    with pytest.raises(HashIndexError, match=f"Packed codes are uint8, not {dtype}"):
        reverse_bit_order(np.zeros((2, 2), dtype))


BITS = np.array([[1] * 8, [0, 1, 1, 0, 0, 1, 0, 1]])


@pytest.mark.parametrize("dtype", ["int64", "int8", "float32", "float64", "bool", "uint8", "uint16"])
@pytest.mark.parametrize("act", [pack, sign, round_for_aqd])
def test_zero_one_codes_are_refused_with_advice(act, dtype):
    for values in (BITS.astype(dtype), BITS[1:].astype(dtype), torch.from_numpy(BITS.astype(dtype))):
        with pytest.raises(HashIndexError, match=r"only 0 and 1.*`2 \* codes - 1`.*numpy\.packbits"):
            act(values)


def test_the_advised_conversions_agree():
    packed = np.packbits(BITS > 0, axis=1, bitorder="little")
    np.testing.assert_array_equal(pack(2 * BITS - 1), packed)
    np.testing.assert_array_equal(sign(2 * BITS - 1), unpack(packed))


def test_signs_and_real_zeros_are_not_taken_for_zero_one_codes():
    assert pack(np.ones((1, 8), int)).tolist() == [[255]]  # a code of +-1
    assert pack(np.zeros((2, 8))).tolist() == [[255], [255]]  # sgn(0) = +1
    assert round_for_aqd(np.zeros((1, 8))).tolist() == [[0.0] * 8]
    assert pack(np.array([[0.0, 1.0, 0.5, 0, 0, 0, 0, 0]])).tolist() == [[255]]
    assert pack(np.empty((0, 8))).shape == (0, 1)
    with pytest.raises(HashIndexError, match="only 0 and 1"):
        pack(np.zeros((2, 8), int))  # no code of +-1 holds a zero


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2, 8, device="meta"), "meta"),
        (torch.ones(2, 8).to_sparse(), "sparse"),
        (scipy.sparse.eye(8), "sparse"),
        (torch.ones(2, 8, dtype=torch.complex64), "complex64"),
        ([[1.0] * 8, [1.0] * 7], "list .*inhomogeneous"),
        ([torch.ones(8), torch.ones(7)], "list .*inhomogeneous"),
        (np.ma.masked_array([[1.0] * 8], mask=[[1] * 8]), "masked"),
        ([["a"] * 8], "<U1"),
        ([[10**40] * 8], "object"),
        (None, r"shape \(\)"),
    ],
)
def test_values_that_are_no_numeric_matrix_are_refused_in_one_line(values, message):
    for act in (pack, sign, round_for_aqd):
        with pytest.raises(HashIndexError, match=message) as refused:
            act(values)
        assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_tensors_are_refused():
    with pytest.raises(HashIndexError, match="quantized"):
        pack(torch.quantize_per_tensor(torch.ones(2, 8), 0.1, 0, torch.qint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torch_values_match_numpy(dtype):
    values = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    np.testing.assert_array_equal(pack(values), pack(values.detach().double().numpy()))
    np.testing.assert_array_equal(pack(torch.from_numpy(sign(values))), pack(values))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_on_the_gpu():
    values = torch.randn(5, 24)
    np.testing.assert_array_equal(pack(values.cuda()), pack(values))


def test_rounding_is_to_multiples_of_two_to_the_minus_14_half_to_even():
    step = 2.0**-14
    values = np.array([[0.5 * step, 1.5 * step, -0.5 * step, 0.7, -1.0, 1e-9, 3 * step, 0.0]])
    rounded = round_for_aqd(values)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(
        rounded[0].astype(np.float64), [0, 2 * step, 0, round(0.7 / step) * step, -1, 0, 3 * step, 0]
    )


def test_rounded_sums_are_exact_in_any_order():
    rng = np.random.default_rng(1)
    z = round_for_aqd(np.tanh(3 * rng.normal(size=(1, 1024))))[0]
    exact = z.astype(np.float64).sum()
    for _ in range(20):
        total = np.float32(0)
        for value in rng.permutation(z):
            total += value
        assert total == exact


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 12)), "12 bits"),
        (np.zeros((2, 2048)), "2048 bits"),
        (np.zeros(8), r"\(8,\)"),
        (np.zeros((2, 8), np.uint8), "uint8"),
        (np.zeros((2, 8), bool), "bool"),
        (np.array([[0.0] * 8, [0.0] * 7 + [np.nan]]), "Row 1 .* NaN"),
        (np.array([[0.0] * 8, [0.0] * 7 + [-np.inf]]), "Row 1 .* infinity"),
        (torch.tensor([[0.0] * 8] * 2 + [[float("nan")] * 8]), "Row 2 .* NaN"),
    ],
)
def test_errors_of_pack(values, message):
    with pytest.raises(HashIndexError, match=message):
        pack(values)


def test_errors_of_unpack():
    with pytest.raises(HashIndexError, match=r"16 bits, where 64"):
        unpack(np.zeros((3, 2), np.uint8), bits=64)
    with pytest.raises(HashIndexError, match="int64"):
        unpack(np.zeros((3, 2), np.int64))


@pytest.mark.parametrize("large", [1e30, 2000.0])
def test_values_without_exact_sums_are_refused(large):
    values = np.zeros((3, 8))
    values[1, 4] = large
    with pytest.raises(HashIndexError, match=r"Row 1 .*\[-1, 1\]"):
        round_for_aqd(values)


def test_as_array_accepts_lists():
    assert as_array([[1, 2], [3, 4]]).shape == (2, 2)
