"""DICOM images as a viewer shows them at first: rescaled, windowed, inverted where black is white."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxvqa.data import dicom, pictures
from jaxvqa.errors import DataError

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed: pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

STORED = np.asarray([[0, 500, 1000], [1500, 2000, 4095]], np.uint16)


def written(values=STORED, **tags) -> bytes:
    """A file with these values and tags."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    samples = 3 if values.ndim == 3 and values.dtype == np.uint8 else 1
    one.SamplesPerPixel, one.PhotometricInterpretation = samples, "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        one.PlanarConfiguration = 0
    one.Rows, one.Columns = values.shape[-3:-1] if samples == 3 else values.shape[-2:]
    bits = 8 * values.dtype.itemsize
    one.BitsAllocated, one.BitsStored, one.HighBit = bits, bits, bits - 1
    one.PixelRepresentation = int(values.dtype.kind == "i")
    if values.ndim == 3 and samples == 1:
        one.NumberOfFrames = len(values)
    one.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(one, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, one, enforce_file_format=True)
    return file.getvalue()


CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, [[0, 31, 62], [93, 125, 255]]),  # from least to largest
        (CT, [[0, 31, 62], [93, 125, 255]]),
        (CT | {"WindowCenter": 40, "WindowWidth": 401}, [[0, 0, 87], [255, 255, 255]]),
        (CT | {"WindowCenter": [40, 600], "WindowWidth": [401, 2800]}, [[0, 0, 87], [255, 255, 255]]),  # the first
        (
            {"WindowCenter": 1000, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
            [[0, 64, 128], [191, 255, 255]],
        ),
        ({"WindowCenter": 1000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"}, [[5, 30, 128], [225, 250, 255]]),
        ({"WindowCenter": 1000, "WindowWidth": 1e-300, "VOILUTFunction": "SIGMOID"}, [[0, 0, 128], [255, 255, 255]]),
        ({"WindowCenter": None, "WindowWidth": 7}, [[0, 31, 62], [93, 125, 255]]),  # an empty tag says nothing
        ({"WindowCenter": 1000, "WindowWidth": 1}, [[0, 0, 255], [255, 255, 255]]),
        ({"PhotometricInterpretation": "MONOCHROME1"}, [[255, 224, 193], [162, 130, 0]]),
        ({"PixelPaddingValue": 4095}, [[0, 64, 128], [191, 255, 255]]),
    ],
)
def test_values_become_light(tags, expected):
    picture = pictures.decode(written(**tags))
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), expected)
    assert np.asarray(pictures.decode(written(**tags), 3)).shape == (2, 3, 3)
    assert pictures.inspect(written(**tags)) == ("DICOM", 3, 2)


@pytest.mark.parametrize(
    ("function", "width", "words"),
    [
        ("LINEAR", 0, "WindowWidth is 0; LINEAR needs one of at least 1"),
        ("LINEAR", 0.5, "WindowWidth is 0.5; LINEAR needs one of at least 1"),
        (None, -300, "WindowWidth is -300; LINEAR needs one of at least 1"),
        ("LINEAR_EXACT", 0, "WindowWidth is 0; LINEAR_EXACT needs one above 0"),
        ("SIGMOID", 0, "WindowWidth is 0; SIGMOID needs one above 0"),
        ("SIGMOID", -1, "WindowWidth is -1; SIGMOID needs one above 0"),
        ("CUBIC", 400, "VOILUTFunction is 'CUBIC'; expected one of LINEAR, LINEAR_EXACT, SIGMOID"),
    ],
)
def test_a_window_that_means_nothing_is_named(function, width, words):
    tags = {"VOILUTFunction": function} if function else {}
    with pytest.raises(DataError, match=words):
        pictures.decode(written(WindowCenter=40, WindowWidth=width, **tags))


def test_signed_values_frames_and_colour():
    signed = written(np.asarray([[-1000, 0], [500, 1000]], np.int16))
    np.testing.assert_array_equal(np.asarray(pictures.decode(signed)), [[0, 128], [191, 255]])
    frames = written(np.stack([STORED, STORED[::-1]]), PhotometricInterpretation="MONOCHROME2")
    np.testing.assert_array_equal(np.asarray(pictures.decode(frames)), np.asarray(pictures.decode(written())))
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(pictures.decode(written(colour))), colour)


def test_a_table_of_values_of_interest_goes_before_a_window():
    table = Dataset()
    table.LUTDescriptor = [3, 0, 16]
    table.LUTData = (np.asarray([0, 100, 255], np.uint16) * 257).tobytes()
    file = written(np.asarray([[0, 1, 2]], np.uint16), VOILUTSequence=[table], WindowCenter=0, WindowWidth=1)
    np.testing.assert_array_equal(np.asarray(pictures.decode(file)), [[0, 100, 255]])


def test_a_palette_becomes_colour():
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, row in (("Red", (0, 1, 2)), ("Green", (3, 4, 5)), ("Blue", (255, 0, 128))):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (np.asarray(row, np.uint16) * 257).tobytes()
    picture = pictures.decode(written(np.asarray([[0, 1, 2]], np.uint8), **tags))
    np.testing.assert_array_equal(np.asarray(picture), [[[0, 3, 255], [1, 4, 0], [2, 5, 128]]])


def test_what_cannot_be_read_is_named(monkeypatch):
    whole = written()
    for file, words in (
        (whole[:-4], "is a DICOM file that cannot be read"),
        (whole[:140], "without an image"),
        (written(Rows=60_000, Columns=60_000), "too large to be meant as a picture"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 40, "is a DICOM file"),
    ):
        with pytest.raises(DataError, match=words):
            pictures.inspect(file)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(DataError, match=r"needs the package pydicom: python -m pip install .*\[dicom\]"):
        dicom.read(whole)


def test_a_dicom_file_is_an_image_by_its_name_and_form(tmp_path):
    assert {".dcm", ".dicom", ".png", ".tif"} <= pictures.endings()
    assert not dicom.is_dicom(b"")
    assert isinstance(dicom.read(written()), Image.Image)
