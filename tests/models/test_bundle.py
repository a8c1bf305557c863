"""A bundle: what anybody can read, nobody can execute, and no damage makes serve something else."""

import contextlib
import json
from random import Random

import msgspec
import numpy as np
import pytest

from endpoints.door import make_popular, make_tastes
from headrace.base.errors import CallError, FormatError
from headrace.models import KINDS, Bundle, open_bundle
from headrace.models.model import pack_texts, read_texts, unpack

KINDS_OF_ARRAYS = ("<i8", "<i4", "<f8", "<f4", "<u8", "|u1")


@pytest.fixture(params=["popularity", "taste"])
def bundle(request):
    return make_popular(6) if request.param == "popularity" else make_tastes(6)


def test_bundle_is_read_as_it_was_packed(bundle):
    again = unpack(bundle.packed)
    assert (again.name, again.kind, again.parameters, again.source) == (
        bundle.name,
        bundle.kind,
        bundle.parameters,
        bundle.source,
    )
    assert again.hash == bundle.hash
    assert again.packed == bundle.packed
    for name, array in bundle.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        assert np.array_equal(again.arrays[name], array)


def test_manifest_is_json_that_names_each_array_with_its_hash(bundle):
    manifest = json.loads(bundle.manifest)
    assert sorted(manifest) == ["arrays", "format", "kind", "name", "parameters", "source"]
    assert sorted(manifest["arrays"]) == sorted(bundle.arrays)
    assert {frozenset(entry) for entry in manifest["arrays"].values()} == {frozenset({"kind", "shape", "hash"})}


def test_hash_depends_on_what_the_bundle_says_and_on_nothing_else():
    one = make_popular(6)
    backwards = Bundle(one.name, one.kind, one.parameters, one.source, dict(reversed(one.arrays.items())))
    strided = {**one.arrays, "counts": np.repeat(one.arrays["counts"], 2)[::2]}
    assert {backwards.hash, Bundle(one.name, one.kind, one.parameters, one.source, strided).hash} == {one.hash}
    others = [
        make_popular(7),
        make_popular(6, marked=1),
        make_popular(6, counts=one.arrays["counts"].astype(np.float32)),
        make_popular(6, counts=one.arrays["counts"].reshape(2, 3)),
        Bundle("other", one.kind, one.parameters, one.source, one.arrays),
        Bundle(one.name, "taste", one.parameters, one.source, one.arrays),
        Bundle(one.name, one.kind, {}, one.source, one.arrays),
        Bundle(one.name, one.kind, one.parameters, {}, one.arrays),
    ]
    assert len({other.hash for other in others} | {one.hash}) == len(others) + 1


@pytest.mark.parametrize("kind", KINDS_OF_ARRAYS)
@pytest.mark.parametrize("shape", [(0,), (3,), (0, 4), (2, 3), ()])
def test_arrays_of_every_kind_and_shape_come_back(kind, shape):
    array = np.ones(shape, kind)
    found = unpack(Bundle("one", "any", {}, {}, {"array": array}).packed).arrays["array"]
    assert (found.dtype, found.shape) == (array.dtype, shape)
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.array(["text"]), np.array([1], "<i2"), np.array([1], ">i8")]
)
def test_other_arrays_are_refused_when_it_is_packed(array):
    with pytest.raises(CallError, match="array 'a' of a bundle has the type"):
        _ = Bundle("one", "any", {}, {}, {"a": array}).packed


def test_texts_come_back_whatever_they_hold():
    texts = ["", "item-1", 'it\'s "me"', "a\x00b", "日本🦊", "\\"]
    assert read_texts(pack_texts(texts)) == texts


def test_no_flipped_byte_goes_unnoticed(bundle):
    # What still reads as a manifest has another hash, and so is not the bundle that the registry was asked for.
    packed, draw = bundle.packed, Random(17)
    places = {*range(200), *range(len(packed) - 50, len(packed)), *draw.sample(range(len(packed)), 400)}
    for place in sorted(places):
        damaged = bytearray(packed)
        damaged[place] ^= draw.randrange(1, 256)
        with contextlib.suppress(FormatError):
            assert unpack(bytes(damaged)).hash != bundle.hash
            assert place < len(packed) - sum(array.nbytes for array in bundle.arrays.values())


def test_flipped_byte_of_an_array_names_the_array(bundle):
    packed = bundle.packed
    place = len(packed) - sum(np.ascontiguousarray(array).nbytes for array in bundle.arrays.values())
    for name in sorted(bundle.arrays):
        damaged = bytearray(packed)
        damaged[place + bundle.arrays[name].nbytes // 2] ^= 1
        with pytest.raises(FormatError, match=f"array '{name}' of the bundle is damaged"):
            unpack(bytes(damaged))
        place += bundle.arrays[name].nbytes


def test_bundle_that_is_cut_short_or_goes_on_is_refused(bundle):
    packed = bundle.packed
    for length in {*range(60), *range(len(packed) - 60, len(packed)), len(packed) // 2}:
        with pytest.raises(FormatError):
            unpack(packed[:length])
    with pytest.raises(FormatError, match="goes on for 1 bytes after its end"):
        unpack(packed + b"\0")
    with pytest.raises(FormatError, match="these bytes are no bundle"):
        unpack(b"PK\x03\x04 a zip of pickles, perhaps")


def _packed(manifest, arrays=b""):
    text = manifest if isinstance(manifest, bytes) else msgspec.json.encode(manifest, order="deterministic")
    return b"headrace bundle\n" + len(text).to_bytes(4, "little") + text + arrays


PLAIN = {"format": 1, "name": "one", "kind": "any", "parameters": {}, "source": {}, "arrays": {}}


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (b"", "manifest cannot be read"),
        (b"{", "manifest cannot be read"),
        (b"\xff{}", "manifest cannot be read"),
        (b'{"format":1,"name":"\xff"}', "manifest cannot be read"),
        (b"[" * 100_000, "manifest cannot be read"),
        (PLAIN | {"format": 2, "news": True}, "bundle 'one' has format 2, this Headrace reads format 1. Run a newer"),
        (PLAIN | {"more": 1}, "manifest cannot be read"),
        ({"format": 1, "name": "one"}, "manifest cannot be read"),
        (b" " + msgspec.json.encode(PLAIN, order="deterministic"), "nothing writes a manifest like its own"),
        (PLAIN | {"arrays": {"a": {"kind": "|O", "shape": [1], "hash": ""}}}, "array 'a' of the bundle has the type"),
        (PLAIN | {"arrays": {"a": {"kind": "<f8", "shape": [-1], "hash": ""}}}, "array 'a' of the bundle has the type"),
        (PLAIN | {"arrays": {"a": {"kind": "<f8", "shape": [1 << 40], "hash": ""}}}, "array 'a' of the bundle is dama"),
        (
            PLAIN | {"arrays": {"a": {"kind": "<f8", "shape": [0, 1 << 62, 1 << 62], "hash": ""}}},
            "array 'a' of the bundle has the shape",
        ),
    ],
)
def test_manifest_that_nothing_of_ours_writes_is_refused(manifest, says):
    with pytest.raises(FormatError, match=says.replace("(", r"\(")):
        unpack(_packed(manifest))


def test_manifest_may_not_claim_more_than_there_is():
    with pytest.raises(FormatError, match="manifest should have 4,294,967,295 bytes"):
        unpack(b"headrace bundle\n" + b"\xff" * 4)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("items", None),
        ("items", pack_texts(["a"])),
        ("items", pack_texts(["item-0"] * 6)),
        ("items", np.frombuffer(b"{}", np.uint8)),
        ("items", np.frombuffer(b'["\xff"]', np.uint8)),
        ("items", np.frombuffer(b"[" * 10_000, np.uint8)),
        ("categories", pack_texts(["drama"] * 5)),
        ("counts", None),
        ("counts", np.ones(5)),
        ("counts", np.full(6, np.nan)),
        ("counts", np.full(6, np.inf)),
        ("counts", np.full(6, -1.0)),
        ("counts", np.ones((6, 1))),
    ],
)
@pytest.mark.parametrize("make", [make_popular, make_tastes])
def test_arrays_that_do_not_fit_the_kind_are_refused(make, array, value):
    whole = make(6)
    arrays = {name: found for name, found in {**whole.arrays, array: value}.items() if found is not None}
    with pytest.raises(FormatError, match=f"bundle '{whole.name}'"):
        open_bundle(Bundle(whole.name, whole.kind, whole.parameters, whole.source, arrays))


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("genre_clicks", np.ones((2, 4), np.float32)),
        ("genre_clicks", np.ones(3, np.float32)),
        ("genre_clicks", np.full((2, 3), np.nan, np.float32)),
        ("genre_clicks", np.full((2, 3), -1, np.float32)),
        ("genres", pack_texts(["comedy"])),
        ("item_genres", np.full(6, 4, np.int32)),
        ("item_genres", np.zeros(5, np.int32)),
        ("persons", np.zeros(3, np.uint64)),
    ],
)
def test_tastes_that_nobody_can_have_are_refused(array, value):
    with pytest.raises(FormatError, match="bundle 'tastes'"):
        open_bundle(make_tastes(6, **{array: value}))


@pytest.mark.parametrize("parameters", [{}, {"prior": None}, {"prior": "much"}, {"prior": 0}, {"prior": -1}])
def test_tastes_without_a_prior_are_refused(parameters):
    whole = make_tastes(6)
    with pytest.raises(FormatError, match="bundle 'tastes'"):
        open_bundle(Bundle(whole.name, whole.kind, parameters, whole.source, whole.arrays))


def test_kind_that_nobody_knows_is_refused_by_name():
    whole = make_popular(6)
    with pytest.raises(FormatError, match=r"bundle 'popular' cannot be opened: no kind 'tasty'. Did you mean taste"):
        open_bundle(Bundle("popular", "tasty", {}, {}, whole.arrays))
    assert sorted(KINDS) == ["click", "popularity", "taste"]


def test_bundle_of_nothing_can_be_opened():
    assert len(open_bundle(make_popular(0)).items) == 0
    assert open_bundle(make_tastes(0, people=())).scores("ann").tolist() == []
