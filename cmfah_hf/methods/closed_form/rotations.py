"""Rotations of projected vectors before their signs: ITQ (`[itq]`), random rotations and frames (`[frames]`).

Shapes: `N` items, `K` bits. Vectors are rows, so a rotation `R` is applied as `V R`.
"""

import numpy as np


def random_rotation(bits: int, seed: int = 0) -> np.ndarray:
    """A random orthogonal matrix `(K, K)`, uniform over all of them (Haar measure), the same for the same seed."""
    normal_KK = np.random.default_rng(seed).standard_normal((bits, bits))
    q_KK, r_KK = np.linalg.qr(normal_KK)
    # The signs of R's diagonal depend on the QR algorithm; without them, Q is not uniform.
    return q_KK * np.where(np.diag(r_KK) < 0, -1.0, 1.0)


def random_frames(bits: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """`(K, K)`: random rotations of the first `dimensions` values side by side, up to `K` columns (`[frames]`).

    The other values are left out. With `dimensions = K` it is one random rotation.
    """
    count = -(-bits // dimensions)
    frames = [random_rotation(dimensions, seed + number) for number in range(count)]
    return np.pad(np.concatenate(frames, axis=1)[:, :bits], ((0, bits - dimensions), (0, 0)))


def itq_rotation(vectors_NK: np.ndarray, rounds: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Iterative quantization: the rotation that brings vectors close to their signs (`[itq]` in docs/method.md).

    Starts from `random_rotation`. Each round takes the signs `B = sgn(V R)`, with `sgn(0) = +1`, then the orthogonal
    `R` that minimizes `||B - V R||`. Neither step can increase the loss.

    Args:
        vectors_NK: Centered projections. Their common scale has no influence on the rotation.
        rounds: Number of rounds.
        seed: Seed of the first rotation.

    Returns:
        The rotation `(K, K)`, and the loss after each round, `(rounds,)`: the mean of `(B - V R)^2`, with `V` scaled to
        a root mean square of 1.
    """
    vectors_NK = np.asarray(vectors_NK, dtype=np.float64)
    vectors_NK = vectors_NK / max(np.sqrt(np.mean(np.square(vectors_NK))), np.finfo(np.float64).tiny)
    rotation_KK = random_rotation(vectors_NK.shape[1], seed)
    losses = np.empty(rounds)
    codes_NK = signs(vectors_NK @ rotation_KK)
    for turn in range(rounds):
        # Procrustes: for B^T V = U S W^T, the best rotation is R = W U^T.
        left_KK, _, right_KK = np.linalg.svd(codes_NK.T @ vectors_NK)
        rotation_KK = (left_KK @ right_KK).T
        rotated_NK = vectors_NK @ rotation_KK
        codes_NK = signs(rotated_NK)
        losses[turn] = np.mean(np.square(codes_NK - rotated_NK))
    return rotation_KK, losses


def signs(values_NK: np.ndarray) -> np.ndarray:
    """-1 and +1, with `sgn(0) = +1`."""
    return np.where(values_NK >= 0, 1.0, -1.0)
