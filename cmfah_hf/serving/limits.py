"""Limits of the search service."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from cmfah_hf.errors import CMFAHError
from cmfah_hf.ranges import COUNT, POSITIVE
from cmfah_hf.space.uploads import MAX_BYTES


@dataclass(frozen=True)
class ServiceLimits:
    """Limits of the content of a request, and of the number of requests. A request beyond them is refused in one line.

    Attributes:
        body_bytes: Bytes of a request.
        image_bytes: Bytes of an image file.
        image_pixels: Pixels of an image, by its header, and of all images of a search. No request has more decoded
            pixels in memory at a time.
        images: Images of a request.
        texts: Texts or terms of a request.
        text_characters: Characters of a text or a condition.
        conditions: Conditions of a search.
        ids: Ids of a removal.
        k: Answers to a query.
        at_once: Requests that are computed at the same time.
        waiting: Requests that wait for them.
        large_bodies: Requests of more than 64 kB that are in memory at the same time.
        connections: Open connections.
        header_seconds: Seconds until the headers of a request have arrived.
        body_seconds: Seconds until its body has arrived.
        answer_seconds: Seconds until it is answered.
        stop_seconds: Seconds for the running requests when the server stops.
        save_seconds: Seconds until a change is in the index file.
    """

    body_bytes: int = 32 * 2**20
    image_bytes: int = MAX_BYTES
    image_pixels: int = 50_000_000
    images: int = 64
    texts: int = 64
    text_characters: int = 2_000
    conditions: int = 32
    ids: int = 10_000
    k: int = 1_000
    at_once: int = min(8, os.cpu_count() or 1)
    waiting: int = 64
    large_bodies: int = 8
    connections: int = 256
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    answer_seconds: float = 60.0
    stop_seconds: float = 30.0
    save_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_count = getattr(self, field.name), field.type in (int, "int")
            is_right, described = COUNT if is_count else POSITIVE
            kind = int if is_count else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not is_right(value) or not value < 2**40:
                raise CMFAHError(f"The limit {field.name} is {value!r:.80}; give {described}, below 2^40.")

    @classmethod
    def of_options(cls, options: Iterable[str]) -> "ServiceLimits":
        """The limits of options such as `k=5000`, and the default ones.

        Raises:
            CMFAHError: If there is no such limit, or its value is out of range.
        """
        known = {field.name: int if field.type in (int, "int") else float for field in fields(cls)}
        given: dict[str, Any] = {}
        for option in options:
            name, equals, value = option.partition("=")
            if name not in known or not equals:
                raise CMFAHError(f"--limit {option:.80}: give NAME=NUMBER, of {', '.join(known)}.")
            try:
                given[name] = known[name](value)
            except ValueError:
                raise CMFAHError(f"--limit {option:.80}: {value!r:.80} is no number of its kind; give one.") from None
        return cls(**given)
