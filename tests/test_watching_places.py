"""Coordinates are read from EXIF or the file's name, as they stand there or not at all."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from fewshot import images
from fewshot.watching.places import Place, locate, place_of_name, place_of_tags

SYDNEY = {1: "S", 2: (33.0, 51.0, 24.48), 3: "E", 4: (151.0, 12.0, 55.08)}


def photo(tags=None, file_format="JPEG"):
    """A picture's bytes, with GPS tags."""
    exif = Image.Exif()
    if tags is not None:
        exif[0x8825] = tags
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), (90, 90, 90)).save(buffer, file_format, exif=exif)
    return buffer.getvalue()


def position(name):
    place = place_of_name(name).place
    return None if place is None else (place.latitude, place.longitude)


# ---- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("33.8568_151.2153.jpg", (33.8568, 151.2153)),
        ("-33.8568_151.2153.jpg", (-33.8568, 151.2153)),
        ("33.8568_-151.2153.jpg", (33.8568, -151.2153)),
        ("-33.8568_-70.5.jpg", (-33.8568, -70.5)),
        ("33.8568--151.2153.jpg", (33.8568, -151.2153)),
        ("33.8568 -151.2153.jpg", (33.8568, -151.2153)),
        ("\N{MINUS SIGN}33.8568_151.2153.jpg", (-33.8568, 151.2153)),
        ("+33.8568_+151.2153.jpg", (33.8568, 151.2153)),
        ("33.8568,151.2153.jpg", (33.8568, 151.2153)),
        ("(33.8568, 151.2153).jpg", (33.8568, 151.2153)),
        ("33,8568_151,2153.jpg", (33.8568, 151.2153)),
        ("33.8568S_151.2153E.jpg", (-33.8568, 151.2153)),
        ("s33.8568_w151.2153.jpg", (-33.8568, -151.2153)),
        ("33.8568 E151.2153.jpg", (33.8568, 151.2153)),
        ("E151.2153_S33.8568.png", (-33.8568, 151.2153)),
        ("33.8568°S 151.2153°E.jpg", (-33.8568, 151.2153)),
        ("lat-33.8568_lon151.2153.jpg", (-33.8568, 151.2153)),
        ("33.8568_S_151.2153_E.jpg", (-33.8568, 151.2153)),
        ("S_33.8568_E_151.2153.jpg", (-33.8568, 151.2153)),
        ("S 33.8568, E 151.2153.jpg", (-33.8568, 151.2153)),
        ("33.8568South_151.2153East.jpg", (-33.8568, 151.2153)),
        ("33.8568\N{MASCULINE ORDINAL INDICATOR}S_151.2153\N{MASCULINE ORDINAL INDICATOR}E.jpg", (-33.8568, 151.2153)),
        ("lat-33.8568lon151.2153.jpg", (-33.8568, 151.2153)),
        ("speed12.5_lat-33.8568_lon151.2153.jpg", (-33.8568, 151.2153)),
        ("fire_0.987_33.8568S_151.2153E.jpg", (-33.8568, 151.2153)),
        ("33.8568_151.2153_fire_0.987.jpg", (33.8568, 151.2153)),
        ("lon=151.2153 lat=-33.8568.jpg", (-33.8568, 151.2153)),
        ("Latitude_-33.8568_Longitude_151.2153.webp", (-33.8568, 151.2153)),
        ("33.8568_151.2153_001.jpg", (33.8568, 151.2153)),
        ("33.8568_151.2153 (2).jpg", (33.8568, 151.2153)),
        ("33.8568_151.2153_12.5.jpg", (33.8568, 151.2153)),  # a height behind them
        ("33.8568_151.2153_fire.jpg", (33.8568, 151.2153)),
        ("cam7_-33.8568_151.2153_0042.jpg", (-33.8568, 151.2153)),
        ("2026-05-01_33.8568_151.2153.jpg", (33.8568, 151.2153)),
        ("90.0_180.0.jpg", (90.0, 180.0)),
        ("-90.0_-180.0.jpg", (-90.0, -180.0)),
        ("1.5_2.5.jpg", (1.5, 2.5)),
        ("street/33.8568_151.2153.jpg", (33.8568, 151.2153)),
    ],
)
def test_a_name_tells_the_place(name, expected):
    assert position(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "IMG_2041.jpg",
        "33_151.jpg",
        "33.8568.jpg",
        "2026-05-01_12.30.45.jpg",
        "v1.2_3.4_final.jpg",
        "photo 1.25 of 2.50.jpg",
        "12345.6789_151.2153.jpg",
        "33.8568_151.2153/photo.jpg",  # a folder's name is none of the photo's
        "",
    ],
)
def test_a_name_that_tells_no_place_is_passed_over_in_silence(name):
    located = place_of_name(name)
    assert (located.place, located.note) == (None, "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("95.0001_151.2153.jpg", "latitude 95.0001 is not between -90 and 90"),
        ("151.2153_33.8568.jpg", "latitude 151.2153"),  # swapped: refused, not guessed
        ("33.8568_195.0001.jpg", "longitude 195.0001 is not between -180 and 180"),
        ("-90.0001_0.5.jpg", "latitude -90.0001"),
        ("33.8568-151.2153.jpg", "dash"),
        ("site-33.8568_151.2153.jpg", "dash"),
        ("-33.8568S_151.2153E.jpg", "contradicts itself"),
        ("lat33.8568E_lon151.2153.jpg", "contradicts itself"),
        ("33.8568S_151.2153N.jpg", "two numbers for latitude"),
        ("33 51.408S 151 12.918E.jpg", "'151' between the two numbers is not understood"),
        ("33°51.408'S 151°12.918'E.jpg", "between the two numbers is not understood"),
        ("33\N{PRIME}51.408S_151.2153E.jpg", "beside the numbers"),
        ("33°51.4'S 151°12.9'E.jpg", "between the two numbers is not understood"),
        ("33_51_24.480S_151_12_55.080E.jpg", "'_151_12_' between the two numbers"),
        ("33°51'24.480\"S 151°12'55.080\"E.jpg", "between the two numbers is not understood"),
        ("33.8568 minus 151.2153.jpg", "'minus' between the two numbers"),
        ("33.8568\N{PRIME}_151.2153\N{PRIME}.jpg", "between the two numbers"),
        ("latS33.8568_lonE151.2153.jpg", "between the two numbers"),
        ("neg33.8568_151.2153.jpg", "'neg' beside the numbers may be part of them"),
        ("minus 33.8568_151.2153.jpg", "'minus' beside the numbers"),
        ("- 33.8568_151.2153.jpg", "'-' beside the numbers"),
        ("Süd_33.8568_151.2153.jpg", "'Süd_' beside the numbers"),
        ("33.8568_151.2153_Oeste.jpg", "'_Oeste' beside the numbers"),
        ("33.8568_151.2153O.jpg", "'O' beside the numbers"),
        ("33.8568_lon_12.5000_lat.jpg", "'_lat' beside the numbers"),
        ("cam_S_33.8568_151.2153.jpg", "'S' stands apart from its number"),
        ("33.8568_151.2153_w.jpg", "'w' stands apart from its number"),
        ("33.8568_S_51.2153.jpg", "'S' stands apart from its number"),
        ("33.8568_S_151.2153E.jpg", "'S' stands apart from its number"),
        ("0.987_S_33.8568_E_151.2153.jpg", "'S' stands apart from its number"),
        ("cam_S_33.8568_N_51.2153_E.jpg", "'_E' beside the numbers"),
        ("33.8568W70.5000.jpg", "'W' stands between two numbers"),
        ("fire_0.987_-33.8568_151.2153.jpg", "3 numbers with decimals"),
        ("0.987_-33.8568_151.2153.jpg", "3 numbers with decimals"),
        ("fire_0.98_-33.8568_151.2153.jpg", "3 numbers with decimals"),
        ("33.8568_51.2153_12.5.jpg", "3 numbers with decimals"),  # which is the height?
        ("33.8568S_151.2153_12.5.jpg", "3 numbers with decimals"),
        ("1.1111_2.2222_3.3333_4.4444.jpg", "4 numbers"),
        ("0.0000_0.0000.jpg", "0, 0 stands for no position"),
    ],
)
def test_a_name_whose_numbers_cannot_be_a_place_is_refused_with_the_reason(name, words):
    located = place_of_name(name)
    assert located.place is None
    assert words in located.note


@given(
    st.floats(-90, 90, allow_nan=False).map(lambda value: round(value, 4)),
    st.floats(-180, 180, allow_nan=False).map(lambda value: round(value, 4)),
    st.sampled_from(["{a:.4f}_{b:.4f}", "{a:.4f},{b:.4f}", "lat{a:.4f}_lon{b:.4f}", "cam_{a:.4f}_{b:.4f}_17"]),
)
def test_every_place_written_as_two_numbers_is_read_back(latitude, longitude, spelling):
    if latitude == longitude == 0:
        return
    assert position(spelling.format(a=latitude, b=longitude) + ".jpg") == (latitude, longitude)


@given(st.text(max_size=60))
def test_no_name_breaks_the_reader(name):
    place = place_of_name(name).place
    assert place is None or (abs(place.latitude) <= 90 and abs(place.longitude) <= 180)


# ---- EXIF


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_gps_tags_of_a_photo_tell_the_place(file_format):
    place = locate(photo(SYDNEY, file_format), "IMG_2041.jpg").place
    assert place is not None
    assert place.source == "exif"
    assert (place.latitude, place.longitude) == pytest.approx((-33.8568, 151.2153), abs=1e-6)


def test_gps_tags_count_more_than_the_name():
    place = locate(photo(SYDNEY), "10.1234_20.1234.jpg").place
    assert place is not None
    assert place.source == "exif"


def test_without_gps_tags_the_name_counts():
    assert locate(photo(), "10.1234_20.1234.jpg").place == Place(10.1234, 20.1234, "name")
    assert locate(b"no picture", "10.1234_20.1234.jpg").place == Place(10.1234, 20.1234, "name")
    assert locate(photo(), "IMG_2041.jpg").place is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({1: "X"}, "broken"),
        ({1: ""}, "broken"),  # which side of the equator?
        ({2: (133.0, 0.0, 0.0)}, "latitude -133.0"),
        ({4: (200.0, 0.0, 0.0)}, "longitude 200.0"),
        ({2: (33.0, 75.0, 0.0)}, "broken"),
        ({2: (-33.0, 0.0, 0.0)}, "broken"),
        ({2: (math.nan, 0.0, 0.0)}, "broken"),
        ({2: (IFDRational(0, 0), 0.0, 0.0)}, "broken"),
        ({2: "north"}, "broken"),
        ({2: ()}, "broken"),
        ({2: None}, "broken"),
        ({9: "V"}, "no fix"),
        ({2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, "no position"),
    ],
)
def test_broken_gps_tags_are_refused_with_the_reason(changed, words):
    located = place_of_tags({**SYDNEY, **changed})
    assert located.place is None
    assert words in located.note


def test_broken_gps_tags_leave_the_name_and_their_note():
    located = locate(photo({**SYDNEY, 9: "V"}), "10.1234_20.1234.jpg")
    assert located.place == Place(10.1234, 20.1234, "name")
    assert "no fix" in located.note


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({1: b"N\0", 2: (10.5,), 3: "W\0", 4: (20.0, 30.0)}, (10.5, -20.5)),
        ({1: "n", 2: 10.5, 3: "e", 4: IFDRational(41, 2)}, (10.5, 20.5)),
    ],
)
def test_gps_tags_of_other_forms_are_read(tags, expected):
    place = place_of_tags(tags).place
    assert place is not None
    assert (place.latitude, place.longitude) == expected


def test_a_picture_too_large_to_decode_is_not_decoded_for_its_tags(monkeypatch):
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "0.001")
    assert images.gps_tags(photo(SYDNEY, "PNG")) == {}


def test_no_gps_tags_are_no_news():
    assert place_of_tags({}).note == ""
    assert images.gps_tags(b"") == {}
    assert images.gps_tags(photo()) == {}
