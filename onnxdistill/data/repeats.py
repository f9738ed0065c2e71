"""Images that are in two splits: what has been learned or decided by is no proof of what was learned."""

from __future__ import annotations

import hashlib

from onnxdistill.data.images import Images, MemoryImages, Splits


def seen_test_images(splits: Splits) -> int | None:
    """How many of the test images are, pixel by pixel, among those that are learned, calibrated or decided by.

    None where images are not held in memory: all files would have to be decoded for it.
    """
    seen: set[bytes] = set()
    for images in (splits.train, splits.calibration, splits.validation):
        contents = _contents(images)
        if contents is None:
            return None
        seen.update(contents)
    contents = _contents(splits.test)
    return None if contents is None else sum(content in seen for content in contents)


def _contents(images: Images) -> list[bytes] | None:
    """A digest of every image's pixels."""
    if not isinstance(images, MemoryImages):
        return None
    return [hashlib.blake2b(pixels.tobytes(), digest_size=16).digest() for pixels in images.pixels.numpy()]
