import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET, Raw

from headrace.base.errors import ProjectError
from headrace.events.event import (
    Envelope,
    Event,
    read_envelope,
    read_properties,
)
from headrace.events.taxonomy import TAXONOMY

DOCS = Path(__file__).parents[2] / "docs"

ECOMMERCE = """
Products Searched, Product List Viewed, Product List Filtered, Promotion Viewed, Promotion Clicked, Product Clicked,
Product Viewed, Product Added, Product Removed, Cart Viewed, Checkout Started, Checkout Step Viewed,
Checkout Step Completed, Payment Info Entered, Order Updated, Order Completed, Order Refunded, Order Cancelled,
Coupon Entered, Coupon Applied, Coupon Denied, Coupon Removed, Product Added to Wishlist,
Product Removed from Wishlist, Wishlist Product Added to Cart, Product Shared, Cart Shared, Product Reviewed
"""
VIDEO = """
Video Playback Started, Video Playback Paused, Video Playback Interrupted, Video Playback Buffer Started,
Video Playback Buffer Completed, Video Playback Seek Started, Video Playback Seek Completed, Video Playback Resumed,
Video Playback Completed, Video Playback Exited, Video Content Started, Video Content Playing,
Video Content Completed, Video Ad Started, Video Ad Playing, Video Ad Completed, Video Quality Updated
"""
OTHERS = "Experiment Viewed, Utterance Heard"


def _names(text):
    return {name.strip() for name in text.split(",")}


def test_taxonomy_has_every_event_of_the_specs_and_no_other():
    assert set(TAXONOMY) == _names(ECOMMERCE) | _names(VIDEO) | _names(OTHERS)


def test_taxonomy_carries_the_recommendation_from_the_list_to_the_playback():
    carrying = {name for name, kind in TAXONOMY.items() if "recommendation_id" in kind.__struct_fields__}
    assert carrying >= _names(
        "Product List Viewed, Product List Filtered, Product Clicked, Product Viewed, Product Added, "
        "Video Playback Started, Video Content Started, Video Content Playing, Video Content Completed"
    )


@pytest.mark.parametrize("name", sorted(TAXONOMY))
def test_canonical_event_takes_no_properties_at_all(name):
    read = read_properties(name, b"{}")
    assert isinstance(read, TAXONOMY[name])
    assert msgspec.json.encode(read) == b"{}"


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("Products Searched", {"query": "blue roses"}),
        ("Products Searched", {"query": {"text": "roses", "colours": ["blue"]}}),
        (
            "Product List Viewed",
            {
                "list_id": "hot",
                "category": "Deals",
                "products": [{"product_id": "507f", "price": 19.0, "position": 1, "propensity": 0.125}],
                "recommendation_id": "rec_1",
            },
        ),
        ("Product List Filtered", {"filters": [{"type": "price", "value": "under-25"}], "sorts": [{"type": "price"}]}),
        ("Promotion Clicked", {"promotion_id": "promo_1", "position": "home_banner_top"}),
        ("Checkout Step Viewed", {"checkout_id": "c", "step": 2, "shipping_method": "Fedex"}),
        ("Order Completed", {"order_id": "o", "revenue": 25.0, "currency": "USD", "products": [{"sku": "4"}]}),
        ("Coupon Denied", {"cart_id": "c", "coupon": "x", "reason": "expired"}),
        ("Wishlist Product Added to Cart", {"wishlist_id": "w", "cart_id": "c", "product_id": "p"}),
        ("Cart Shared", {"share_via": "email", "products": [{"product_id": "p"}]}),
        ("Product Reviewed", {"product_id": "p", "rating": 5.0}),
        (
            "Video Playback Started",
            {"session_id": "s", "content_asset_ids": ["a"], "ad_asset_id": ["ad1", "ad2"], "ad_type": "mid-roll"},
        ),
        ("Video Playback Seek Started", {"position": 278.0, "seek_position": 320.0, "full_screen": False}),
        ("Video Content Playing", {"asset_id": "a", "position": 10.0, "keywords": ["nature"], "season": "1"}),
        ("Video Ad Playing", {"pod_position": 1, "quartile": 2, "content": {"asset_id": "a", "title": "t"}}),
        ("Video Quality Updated", {"bitrate": 100.0, "startupTime": 1.5, "droppedFrames": 3.0}),
        ("Experiment Viewed", {"experiment_id": "e", "variation_id": "v", "variation_name": "B"}),
        ("Utterance Heard", {"text": "play", "intent": "play", "confidence": 0.9, "slots": {"genre": "comedy"}}),
    ],
)
def test_canonical_event_reads_what_the_specs_show(name, properties):
    read = read_properties(name, msgspec.json.encode(properties))
    assert msgspec.to_builtins(read) == properties


def test_numeric_strings_are_numbers_and_whole_numbers_are_ids():
    read = read_properties(
        "Product List Viewed",
        b'{"list_id": 7, "products": [{"product_id": 9714107479, "price": "18.99", "position": "3"}]}',
    )
    assert read.list_id == "7"
    assert (read.products[0].product_id, read.products[0].price, read.products[0].position) == ("9714107479", 18.99, 3)


@pytest.mark.parametrize("number", ["nan", "inf", "-Infinity", "1,5", "", "cheap"])
def test_text_that_is_no_finite_number_is_refused(number):
    with pytest.raises(msgspec.ValidationError, match=r"^Product Clicked: .* at `\$.price`$"):
        read_properties("Product Clicked", json.dumps({"price": number}).encode())


def test_error_names_the_event_and_the_path():
    with pytest.raises(msgspec.ValidationError) as caught:
        read_properties("Order Completed", b'{"products": [{"price": 1}, {"position": 1.5}]}')
    assert str(caught.value) == "Order Completed: Expected `int | null`, got `float` - at `$.products[1].position`"


@pytest.mark.parametrize("absent", [UNSET, b"null", Raw(b"null"), b"{}"])
def test_absent_properties_read_as_none_at_all(absent):
    assert read_properties("Product Clicked", absent) == TAXONOMY["Product Clicked"]()
    assert read_properties("Never Heard Of", absent) == {}


def test_properties_that_the_event_does_not_know_are_passed_over():
    assert read_properties("Product Clicked", b'{"product_id": "p", "shelf": [1]}').product_id == "p"


def test_unknown_event_is_kept_whole():
    properties = b'{"big": 123456789012345678901234567890, "deep": {"\xc3\xa9": [1, null, {"x": 1.5}]}}'
    assert read_properties("Tea Brewed", properties) == json.loads(properties)


@pytest.mark.parametrize("name", ["Product Clicked", "Tea Brewed"])
def test_properties_that_are_no_object_are_refused(name):
    with pytest.raises(msgspec.ValidationError, match=f"^{name}: Expected `object`, got `int`"):
        read_properties(name, b"5")


def test_declared_event_is_typed():
    seat = Event("Seat Chosen", fields={"seat": str, "price": float, "row": int, "aisle": bool, "tags": list[str]})
    read = read_properties(seat, b'{"seat": 12, "price": "9.5", "row": 3, "aisle": true, "tags": ["a", 7], "more": {}}')
    assert (read.seat, read.price, read.row, read.aisle, read.tags) == ("12", 9.5, 3, True, ["a", "7"])
    assert read_properties(seat, b"{}").seat is None
    with pytest.raises(msgspec.ValidationError, match=r"^Seat Chosen: Expected `int.* at `\$.row`$"):
        read_properties(seat, b'{"row": "third"}')


def test_declared_fields_extend_a_canonical_event():
    clicks = Event("Product Clicked", item="product_id", fields={"shelf": str})
    read = read_properties(clicks, b'{"product_id": "p", "shelf": "top"}')
    assert (read.product_id, read.shelf) == ("p", "top")
    assert isinstance(read, TAXONOMY["Product Clicked"])


def test_declared_event_without_fields_is_read_as_its_name_is():
    assert isinstance(read_properties(Event("Cart Viewed"), b"{}"), TAXONOMY["Cart Viewed"])
    assert read_properties(Event("Tea Brewed", item="tea"), b'{"tea": 1}') == {"tea": 1}


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("", {}, "Event(''): give it the name that clients send, such as 'Product Clicked'"),
        ("  ", {}, "Event('  '): give it the name that clients send, such as 'Product Clicked'"),
        (None, {}, "Event(None): give it the name that clients send, such as 'Product Clicked'"),
        (
            "Tea Brewed",
            {"fields": {"tea": bytes}},
            (
                "Event('Tea Brewed'): field 'tea' has the type <class 'bytes'>; "
                "use str, int, float, bool or a list of one of them"
            ),
        ),
        (
            "Tea Brewed",
            {"fields": {"tea": list[dict]}},
            (
                "Event('Tea Brewed'): field 'tea' has the type list[dict]; "
                "use str, int, float, bool or a list of one of them"
            ),
        ),
        (
            "Tea Brewed",
            {"fields": {"tea leaf": str}},
            "Event('Tea Brewed'): field 'tea leaf' must be a name as Python writes them, such as 'seat'",
        ),
        (
            "Product Clicked",
            {"fields": {"price": str}},
            "Event('Product Clicked'): field 'price' is canonical for this event already; leave it out",
        ),
        (
            "Product List Viewed",
            {"item": "prodcts[].product_id"},
            "Event('Product List Viewed'): item='prodcts[].product_id' is not a property of it. Did you mean products?",
        ),
        (
            "Tea Brewed",
            {"item": "tea leaf"},
            "Event('Tea Brewed'): item='tea leaf' is no path; write 'product_id' or 'products[].product_id'",
        ),
    ],
)
def test_wrong_declaration_is_refused_with_what_to_write(name, more, message):
    with pytest.raises(ProjectError) as caught:
        Event(name, **more)
    assert str(caught.value) == message


def test_declaration_is_a_plain_frozen_value():
    fields = {"seat": str}
    seat = Event("Seat Chosen", fields=fields)
    fields["row"] = int
    assert seat == Event("Seat Chosen", fields={"seat": str}) == pickle.loads(pickle.dumps(seat))
    assert len({seat, Event("Seat Chosen", fields={"seat": str}), Event("Seat Chosen", fields={"seat": int})}) == 2
    with pytest.raises(FrozenInstanceError):
        seat.name = "Seat Left"


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("Product List Viewed", "products[].product_id"),
        ("Product Clicked", "product_id"),
        ("Video Content Playing", "asset_id"),
    ],
)
def test_items_of_the_project_file_are_paths(name, item):
    assert Event(name, item=item).item == item


def test_envelope_reads_segments_names_and_keeps_payloads_raw():
    envelope = read_envelope(
        b'{"messageId": "m", "type": "track", "userId": "u", "anonymousId": "a", "event": "E", "name": "N",'
        b'"groupId": "g", "previousId": "p", "timestamp": "t", "originalTimestamp": "o", "sentAt": "s",'
        b'"properties": {"x" : 1.50}, "traits": null, "integrations": {}, "unknown": [1]}'
    )
    ids = (envelope.message_id, envelope.user_id, envelope.anonymous_id, envelope.group_id, envelope.previous_id)
    assert ids == ("m", "u", "a", "g", "p")
    assert (envelope.type, envelope.event, envelope.name) == ("track", "E", "N")
    assert (envelope.timestamp, envelope.original_timestamp, envelope.sent_at) == ("t", "o", "s")
    assert bytes(envelope.properties) == b'{"x" : 1.50}'
    assert bytes(envelope.traits) == b"null"
    assert envelope.context is UNSET


def test_envelope_round_trips():
    wire = (
        b'{"type":"identify","messageId":"m","userId":"u","timestamp":"2026-01-05T00:00:00Z","traits":{"plan": "plus"}}'
    )
    assert msgspec.json.encode(read_envelope(wire)) == wire
    assert msgspec.json.encode(Envelope()) == b"{}"


def test_envelope_reads_whole_numbers_as_ids():
    envelope = read_envelope(b'{"userId": 123456789012345678901234567890, "anonymousId": 7, "properties": {"a":  1}}')
    assert (envelope.user_id, envelope.anonymous_id) == ("123456789012345678901234567890", "7")
    assert bytes(envelope.properties) == b'{"a":  1}'


@pytest.mark.parametrize(
    ("event", "path"),
    [(b'{"userId": {}}', "$.userId"), (b'{"type": "trck"}', "$.type"), (b'{"timestamp": 5, "userId": 1}', "$.time")],
)
def test_envelope_of_the_wrong_shape_is_refused_with_its_path(event, path):
    with pytest.raises(msgspec.ValidationError) as caught:
        read_envelope(event)
    assert path in str(caught.value)


@pytest.mark.parametrize("event", [b"7", b"[]", b'"x"', b"null"])
def test_envelope_of_a_value_that_is_no_object_is_refused(event):
    with pytest.raises(msgspec.ValidationError, match="Expected `object`"):
        read_envelope(event)


def test_event_is_imported_without_numpy():
    code = "import sys, headrace.events.event; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_event_page_names_every_canonical_event():
    page = (DOCS / "concepts" / "event.md").read_text(encoding="utf-8")
    assert [name for name in TAXONOMY if name not in page] == []
