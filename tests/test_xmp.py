"""Sidecars: the description is read and written, and not another byte is touched."""

import random
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.catalog import one_caption
from batchcap.errors import ExchangeError, UsageError
from batchcap.exchange.xmp import description, with_description

# As the programs write them, shortened: adjustments, ratings, histories and padding must not be lost.
LIGHTROOM = b"""\
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00        ">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
   tiff:Model="X-T4 &gt; X-T3"
   xmp:Rating="4"
   xmp:MetadataDate="2024-06-01T12:00:00+02:00"
   crs:Exposure2012="+0.35"
   crs:HasSettings="True">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">Gr\xc3\xa4nna, evening &amp; lake</rdf:li>
    </rdf:Alt>
   </dc:description>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>lake</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <xmpMM:History>
    <rdf:Seq>
     <rdf:li
      stEvt:action="saved"
      stEvt:changed="/metadata"/>
    </rdf:Seq>
   </xmpMM:History>
   <crs:ToneCurvePV2012>
    <rdf:Seq>
     <rdf:li>0, 0</rdf:li>
     <rdf:li>255, 255</rdf:li>
    </rdf:Seq>
   </crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DARKTABLE = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2024:06:01 12:00:00.000"
   xmp:Rating="1"
   darktable:xmp_version="5"
   darktable:raw_params="0"
   darktable:auto_presets_applied="1"
   darktable:history_end="11">
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="rawprepare"
      darktable:enabled="1"
      darktable:params="gz02eJxjYGBg&quot;AAT"
      darktable:multi_name=""
      darktable:blendop_params="gz12eJxjYGBgkGAAgRNODESDBnsIHll8ANNSGQM="/>
    </rdf:Seq>
   </darktable:history>
   <darktable:masks_history>
    <rdf:Seq/>
   </darktable:masks_history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DIGIKAM = (
    b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n"""
    b"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">"""
    b"""<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">"""
    b"""<rdf:Description rdf:about="" xmlns:digiKam="http://www.digikam.org/ns/1.0/" """
    b"""xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" """
    b"""digiKam:PickLabel="0" digiKam:ColorLabel="0">"""
    b"""<digiKam:TagsList><rdf:Seq><rdf:li>places/lake</rdf:li></rdf:Seq></digiKam:TagsList>"""
    b"""<dc:description><rdf:Alt><rdf:li xml:lang="de-DE">Ein See</rdf:li>"""
    b"""<rdf:li xml:lang="x-default">A lake</rdf:li></rdf:Alt></dc:description>"""
    b"""<tiff:ImageDescription><rdf:Alt><rdf:li xml:lang="x-default">A lake</rdf:li></rdf:Alt>"""
    b"""</tiff:ImageDescription></rdf:Description></rdf:RDF></x:xmpmeta>\n"""
    + b" " * 200
    + b"""\n<?xpacket end="w"?>"""
)
SIDECARS = {"lightroom": LIGHTROOM, "darktable": DARKTABLE, "digikam": DIGIKAM}
SAID = {"lightroom": "Gränna, evening & lake", "darktable": None, "digikam": "A lake"}
CAPTION = 'Zoë & <her> "dog" \U0001f436 ]]>'


def without_description(data: bytes, caption: str) -> bytes:
    """The sidecar with what was written cut out of it."""
    escaped = caption.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").encode()
    assert data.count(escaped) == 1
    return data.replace(escaped, b"")


@pytest.mark.parametrize("program", SIDECARS)
def test_only_the_description_differs(program: str) -> None:
    before = SIDECARS[program]
    assert description(before) == SAID[program]
    after = with_description(before, CAPTION)
    assert description(after) == CAPTION
    ElementTree.fromstring(after)
    if SAID[program] is None:
        rest = without_description(after, CAPTION)
        added = re.search(rb"<dc:description .*</dc:description>", rest)
        assert added is not None and rest.replace(added[0], b"") == before
    else:
        old = {"lightroom": "Gränna, evening &amp; lake".encode(), "digikam": b"A lake"}[program]
        # Of digiKam's two, the first: the other is not of Dublin Core.
        assert without_description(after, CAPTION) == before.replace(old, b"", 1)
    # Other languages stay.
    assert (b"Ein See" in after) == (program == "digikam")
    # There and back again: the very bytes, where there was a place for it.
    assert with_description(after, "x") == with_description(before, "x")
    if SAID[program] is not None:
        assert with_description(after, SAID[program]) == before


@settings(max_examples=150, deadline=None)
@given(text=st.text(min_size=1, max_size=60))
def test_any_caption_goes_there_and_back(text: str) -> None:
    try:
        caption = one_caption(text)
    except UsageError:
        return
    for before in (None, *SIDECARS.values()):
        after = with_description(before, caption)
        assert description(after) == caption
        assert with_description(after, caption) == after


def test_a_sidecar_where_there_was_none() -> None:
    made = with_description(None, CAPTION)
    assert description(made) == CAPTION
    assert made.startswith(b"<?xpacket begin") and made.endswith(b'<?xpacket end="w"?>\n')


RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"<rdf:RDF {RDF}/>", '<rdf:Description rdf:about=""><dc:description xmlns:dc='),
        (f"<rdf:RDF {RDF}><rdf:Description /></rdf:RDF>", "<rdf:Description ><dc:description xmlns:dc="),
        (f"<rdf:RDF {RDF}><rdf:Description {DC}/></rdf:RDF>", f"<rdf:Description {DC}><dc:description><"),
        # Other names for the same namespaces, and `dc` for something else.
        (
            f'<r:RDF {RDF.replace(":rdf", ":r")}><r:Description xmlns:dc="urn:x" '
            f'{DC.replace(":dc", ":core")} dc:description="other"/></r:RDF>',
            '<core:description><r:Alt><r:li xml:lang="x-default">new',
        ),
        (
            f'<RDF {RDF.replace(":rdf", "")}><Description xmlns:dc="urn:x"/></RDF>',
            '<dc:description xmlns:dc="http://purl.org/dc/elements/1.1/"><Alt><li xml:lang="x-default">new<',
        ),
        # As an attribute, in either quotes, whatever other values look like.
        (
            f"<rdf:RDF {RDF}><rdf:Description {DC} dc:title=' dc:description=\"x\"' dc:description = 'old>'/>"
            "</rdf:RDF>",
            "dc:title=' dc:description=\"x\"' dc:description = 'new'/>",
        ),
        # Without a list, without the default, an empty item, an empty list.
        (f"<rdf:RDF {RDF}><rdf:Description {DC}><dc:description>old</dc:description></rdf:Description>"
         "</rdf:RDF>",
         '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">new</rdf:li></rdf:Alt></dc:description>'),
        (f'<rdf:RDF {RDF}><rdf:Description {DC}><dc:description><rdf:Alt><rdf:li xml:lang="de">alt</rdf:li>'
         "</rdf:Alt></dc:description></rdf:Description></rdf:RDF>",
         '<rdf:Alt><rdf:li xml:lang="x-default">new</rdf:li><rdf:li xml:lang="de">alt</rdf:li></rdf:Alt>'),
        (f'<rdf:RDF {RDF}><rdf:Description {DC}><dc:description><rdf:Alt><rdf:li xml:lang="x-default"/>'
         "</rdf:Alt></dc:description></rdf:Description></rdf:RDF>",
         '<rdf:li xml:lang="x-default">new</rdf:li></rdf:Alt>'),
        (f"<rdf:RDF {RDF}><rdf:Description {DC}><dc:description><rdf:Alt/></dc:description></rdf:Description>"
         "</rdf:RDF>", '<rdf:Alt><rdf:li xml:lang="x-default">new</rdf:li></rdf:Alt>'),
        # In the second node; a description of something inside is not the picture's.
        (f"<rdf:RDF {RDF}><rdf:Description><x xmlns='u'><rdf:Description {DC} dc:description='inner'/></x>"
         f"</rdf:Description><rdf:Description {DC}><dc:description/></rdf:Description></rdf:RDF>",
         '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">new</rdf:li></rdf:Alt></dc:description>'),
    ],
)  # fmt: skip
def test_all_forms_of_a_description(before: str, after: str) -> None:
    made = with_description(before.encode(), "new")
    assert after in made.decode()
    assert description(made) == "new"


def test_another_encoding_gets_references() -> None:
    before = f'<?xml version="1.0" encoding="ISO-8859-1"?><rdf:RDF {RDF} a="\xe9"/>'.encode("latin-1")
    made = with_description(before, "Zoë \U0001f436")
    assert b"Zo&#235; &#128054;" in made and b'a="\xe9"' in made
    assert description(made) == "Zoë \U0001f436"
    marked = b"\xef\xbb\xbf" + LIGHTROOM
    assert with_description(marked, "new") == b"\xef\xbb\xbf" + with_description(LIGHTROOM, "new")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no XML",
        b"<a>",
        b"<rdf:RDF/>",
        "<a/>".encode("utf-16"),
        b"\xff\xfe",
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a/>",
        LIGHTROOM[:-20],
        LIGHTROOM.replace(b"\xc3\xa4", b"\xe4"),
    ],
)
def test_what_is_no_xmp_is_an_error(data: bytes) -> None:
    for call in (description, lambda data: with_description(data, "new")):
        with pytest.raises(ExchangeError, match="^it (is|has)") as caught:
            call(data)
        assert "\n" not in str(caught.value)


def test_what_has_no_rdf_can_not_be_written() -> None:
    assert description(b"<a/>") is None
    with pytest.raises(ExchangeError, match="no rdf:RDF"):
        with_description(b"<a/>", "new")


def test_damaged_sidecars_are_errors_or_stay_whole() -> None:
    """Bytes changed at random: whatever is taken is well-formed afterwards, and has the description."""
    draw = random.Random(5)
    taken = 0
    for _ in range(600):
        data = bytearray(draw.choice(list(SIDECARS.values())))
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.choice(b"<>\"'&/=: x\x00\xff")
        try:
            made = with_description(bytes(data), "new")
        except ExchangeError:
            continue
        assert description(made) == "new"
        taken += 1
    assert taken > 30
