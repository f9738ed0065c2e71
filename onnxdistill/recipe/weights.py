"""What a recipe may say in the place of a file of weights."""

from __future__ import annotations

NO_WEIGHTS = "none"
"""The network is as it is drawn, and knows nothing."""

OWN_WEIGHTS = "own"
"""The function that builds the network loads them itself."""


def check_own_weights(place: str, network: str, weights: str) -> None:
    """Refuses `own` where no function of the user's is called.

    Raises:
        ValueError: It names the key.
    """
    if weights == OWN_WEIGHTS and (":" not in network or network.startswith("torchvision:")):
        raise ValueError(
            f"{place}.weights = {OWN_WEIGHTS!r} is for a MODULE:FUNCTION that loads weights itself; {network!r} is none"
        )
