"""One rule from any picture to 8 bits, the same for training, explanations and the builders' check."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxvqa.data import images, pictures
from jaxvqa.errors import DataError
from jaxvqa.explain import overlay
from tests.picture_files import DAMAGED, RAMP, encoded, noise, turned

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREYS, GREYS[::-1], GREYS.T], axis=-1)
PALETTE = Image.fromarray(COLOUR).convert("P")
RED = Image.new("P", (4, 3), 1)
RED.putpalette([0, 0, 0, 200, 0, 0])
HALF = np.repeat(np.array([[255, 0]], np.uint8), 8, axis=0)  # white on the left, black on the right
WHITE = np.full((3, 4, 3), 255, np.uint8)


def one_colour_hidden(mode: str, value, colour) -> bytes:
    return encoded(Image.new(mode, (4, 3), value), transparency=colour)


KINDS = {
    "8-bit grey": (encoded(GREYS), GREYS),
    "8-bit colour": (encoded(COLOUR), COLOUR),
    "1 bit": (encoded(Image.fromarray(GREYS > 99)), np.where(GREYS > 99, 255, 0)),
    "16-bit PNG": (encoded(RAMP), GREYS),
    "16-bit TIFF": (encoded(RAMP, "TIFF"), GREYS),
    "32-bit TIFF": (encoded(RAMP.astype(np.int32), "TIFF"), GREYS),
    "16-bit PGM": (encoded(RAMP.astype(np.int32), "PPM"), GREYS),
    "float": (encoded((RAMP / 65535).astype(np.float32), "TIFF"), GREYS),
    "palette": (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "CMYK": (encoded(Image.new("CMYK", (4, 3), (0, 255, 0, 0)), "TIFF"), WHITE * np.uint8([1, 0, 1])),
    "transparent RGBA": (encoded(Image.new("RGBA", (4, 3), (255, 0, 0, 0))), WHITE),
    "opaque RGBA": (encoded(Image.fromarray(COLOUR).convert("RGBA")), COLOUR),
    "transparent LA": (encoded(Image.new("LA", (4, 3), (0, 0))), WHITE[..., 0]),
    "palette with a hidden colour": (encoded(RED, transparency=1), WHITE),
    "RGB with a hidden colour": (one_colour_hidden("RGB", (9, 8, 7), (9, 8, 7)), WHITE),
    "grey with a hidden value": (one_colour_hidden("L", 9, 9), WHITE[..., 0]),
    "16-bit grey with a hidden value": (encoded(np.full((3, 4), 500, np.uint16), transparency=500), WHITE[..., 0]),
    "turned PNG": (turned(HALF, 6, "PNG"), HALF.T),
    "turned TIFF": (turned(HALF, 6, "TIFF"), HALF.T),
    "mirrored PNG": (turned(HALF, 2, "PNG"), HALF[:, ::-1]),
    "animated": (encoded(Image.fromarray(GREYS), "GIF", save_all=True, append_images=[Image.new("L", (16, 16))]), GREYS),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_has_a_rule(kind):
    content, expected = KINDS[kind]
    own = np.asarray(pictures.decode(content))
    shown = own if own.ndim == expected.ndim else own[..., 0]  # GIF stores grey as a palette
    np.testing.assert_array_equal(shown, expected)
    grey, colour = pictures.decode(content, 1), pictures.decode(content, 3)
    assert (grey.mode, colour.mode) == ("L", "RGB")
    height, width = expected.shape[:2]
    assert pictures.inspect(content)[1:] == (width, height)
    # What a model is trained on is what explanations and reports draw on.
    np.testing.assert_array_equal(overlay.decode(content), np.asarray(colour))
    trained = images.DecodeImage({"image": (16, 3), "grey": (8, 1)})({"image": content, "image_id": 1})
    np.testing.assert_array_equal(trained["image"], np.asarray(colour.resize((16, 16), Image.Resampling.BILINEAR)))
    np.testing.assert_array_equal(trained["grey"][..., 0], np.asarray(grey.resize((8, 8), Image.Resampling.BILINEAR)))


def test_a_jpeg_is_turned_as_its_orientation_says():
    picture = np.zeros((32, 64), np.uint8)
    picture[:, :32] = 255
    content = turned(picture, 6)
    assert pictures.inspect(content) == ("JPEG", 32, 64)
    upright = np.asarray(pictures.decode(content, 1))
    assert upright.shape == (64, 32)
    assert upright[:24].min() > 200
    assert upright[40:].max() < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_notes_do_not_spoil_a_whole_picture():
    content = encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert pictures.inspect(content) == ("JPEG", 90, 70)
    np.testing.assert_array_equal(
        np.asarray(pictures.decode(content)), np.asarray(pictures.decode(encoded(noise(), "JPEG")))
    )


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_ordinary_jpegs_are_pillows_own(mode, channels):
    content = encoded(noise(mode), "JPEG")
    with Image.open(io.BytesIO(content)) as picture:
        expected = np.asarray(picture.convert(pictures.MODES[channels]))
    np.testing.assert_array_equal(np.asarray(pictures.decode(content, channels)), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(np.float32([[0, 2]]), "TIFF"), "numbers from 0.0 to 2.0; of this kind only 0 to 1"),
        (encoded(np.float32([[0, np.nan]]), "TIFF"), "from nan to nan"),
        (encoded(np.float32([[-0.5, 1]]), "TIFF"), "from -0.5 to 1.0"),
        (encoded(np.int32([[0, 65536]]), "TIFF"), "integers from 0 to 65536; of this kind only 0 to 65535"),
        (encoded(np.int32([[-1, 9]]), "TIFF"), "from -1 to 9"),
    ],
)
def test_values_without_a_rule_are_refused(content, message):
    for read in (pictures.decode, pictures.inspect, lambda encoded: overlay.decode(encoded)):
        with pytest.raises(DataError, match=message):
            read(content)


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_pictures_are_refused_by_all_readers(kind):
    content = DAMAGED[kind]()
    decode = images.DecodeImage({"image": (16, 3)})
    for read in (pictures.decode, pictures.inspect, pictures.decode_labels, overlay.decode):
        with pytest.raises(DataError):
            read(content)
    with pytest.raises(DataError, match=r"image 42 .*PNG or JPEG"):
        decode({"image": content, "image_id": 42})


def test_a_pointer_of_git_lfs_is_called_so():
    with pytest.raises(DataError, match=r"pointer of Git LFS, not the picture itself: run `git lfs pull`"):
        pictures.inspect(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("progressive", [False, True])
def test_the_cheap_check_finds_every_cut_that_decoding_finds(progressive):
    whole = encoded(noise(), "JPEG", progressive=progressive)
    pictures.inspect(whole)
    for cut in [*range(1, 20), *range(20, len(whole), 97)]:
        for read in (pictures.decode, pictures.inspect):
            with pytest.raises(DataError):
                read(whole[:-cut])


@pytest.mark.parametrize("picture", [RAMP, COLOUR, np.float32([[0, 1]])])
def test_label_maps_are_values_of_one_byte(picture):
    with pytest.raises(DataError, match="one channel"):
        pictures.decode_labels(encoded(picture, "TIFF"))
    np.testing.assert_array_equal(pictures.decode_labels(encoded(GREYS)), GREYS)
    np.testing.assert_array_equal(pictures.decode_labels(encoded(PALETTE)), np.asarray(PALETTE))
