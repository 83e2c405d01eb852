"""Builder of lists of images with captions; README.md beside it describes the data."""

from tfds_builders.caption_list.release import RELEASE
from tfds_builders.caption_lists import CaptionLists


class Builder(CaptionLists):
    """Lists of images with captions: `captions`, and the `images` they describe."""

    release = RELEASE
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put your lists and images there; see tfds_builders/caption_list/README.md."
