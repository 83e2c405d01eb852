"""Builder of Flickr30K; README.md beside it describes the data."""

from tfds_builders.caption_lists import CaptionLists
from tfds_builders.flickr30k.release import CAPTIONS, IMAGES, RELEASE


class Builder(CaptionLists):
    """Flickr30K in Karpathy's splits: `captions`, and the `images` they describe."""

    release = RELEASE
    EXPECTED_COUNTS = {"captions": CAPTIONS, "images": IMAGES}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put Karpathy's lists and the images there; see tfds_builders/flickr30k/README.md."
