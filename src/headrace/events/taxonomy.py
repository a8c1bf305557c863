"""The canonical events: Segment's e-commerce V2, video and A/B specs, and what Headrace adds.

Headrace's own: `recommendation_id` on what shows, opens or plays an item, `propensity` per product
shown, `list_id` on a click, and the event `Utterance Heard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

FUNNEL = ("Product List Viewed", "Product Clicked", "Video Playback Started", "Video Playback Completed")
"""The way from a list to the end of what was chosen from it."""

# "nan" and "inf" are numeric strings too; one of them in a sum would poison it.
Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A number or a numeric string, as shops send prices in both ways."""


def _fields(kind: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind | None)


def define(name: str, fields: Mapping[str, Any], base: type[msgspec.Struct] | None = None) -> type[msgspec.Struct]:
    """Returns the Struct of an event's properties: all optional, None when absent."""
    rows = [(field, kind, None) for field, kind in fields.items()]
    bases = (base,) if base else None
    module = __name__
    return msgspec.defstruct(name.replace(" ", ""), rows, bases=bases, module=module, omit_defaults=True, kw_only=True)


_RECOMMENDED = _fields(str, "recommendation_id")
_BARE_PRODUCT = (
    _fields(str, "product_id sku category name brand variant coupon url image_url")
    | _fields(Number, "price quantity")
    | _fields(int, "position")
)

Product = define("Product", _BARE_PRODUCT | _fields(Number, "propensity"))
"""One element of `products`."""

_PRODUCT = _BARE_PRODUCT | _RECOMMENDED
_PRODUCTS = _fields(list[Product], "products")  # type: ignore[valid-type]  # a Struct made at run time
_LIST = _fields(str, "list_id category") | _PRODUCTS | _RECOMMENDED
_CHOICES = _fields(list[define("Choice", _fields(str, "type value"))], "filters sorts")  # type: ignore[misc]  # as above
_PROMOTION = _fields(str, "promotion_id creative name position")
_CART = _fields(str, "cart_id") | _PRODUCTS
_STEP = _fields(str, "checkout_id shipping_method payment_method") | _fields(int, "step")
_ORDER = (
    _fields(str, "checkout_id order_id affiliation coupon currency")
    | _fields(Number, "value subtotal total revenue shipping tax discount")
    | _PRODUCTS
)
_COUPON = _fields(str, "order_id cart_id coupon coupon_id coupon_name reason") | _fields(Number, "discount")
_WISH = _PRODUCT | _fields(str, "wishlist_id wishlist_name")
_SHARE = _fields(str, "share_via share_message recipient")

_ECOMMERCE: dict[str, dict[str, Any]] = {
    "Products Searched": _fields(str | dict[str, Any], "query"),
    "Product List Viewed": _LIST,
    "Product List Filtered": _LIST | _CHOICES,
    "Promotion Viewed": _PROMOTION,
    "Promotion Clicked": _PROMOTION,
    "Product Clicked": _PRODUCT | _fields(str, "list_id"),
    "Product Viewed": _PRODUCT | _fields(str, "currency") | _fields(Number, "value"),
    "Product Added": _PRODUCT | _fields(str, "cart_id"),
    "Product Removed": _PRODUCT | _fields(str, "cart_id"),
    "Cart Viewed": _CART,
    "Checkout Started": _ORDER,
    "Checkout Step Viewed": _STEP,
    "Checkout Step Completed": _STEP,
    "Payment Info Entered": _STEP | _fields(str, "order_id"),
    "Order Updated": _ORDER,
    "Order Completed": _ORDER,
    "Order Refunded": _ORDER,
    "Order Cancelled": _ORDER,
    "Coupon Entered": _COUPON,
    "Coupon Applied": _COUPON,
    "Coupon Denied": _COUPON,
    "Coupon Removed": _COUPON,
    "Product Added to Wishlist": _WISH,
    "Product Removed from Wishlist": _WISH,
    "Wishlist Product Added to Cart": _WISH | _fields(str, "cart_id"),
    "Product Shared": _PRODUCT | _SHARE,
    "Cart Shared": _CART | _SHARE,
    "Product Reviewed": _fields(str, "product_id review_id review_body") | _fields(Number, "rating"),
}

_PLAYHEAD = _fields(str, "session_id") | _fields(Number, "position total_length") | _RECOMMENDED
_STREAM = _fields(Number, "bitrate framerate")
_PLAYBACK = (
    _PLAYHEAD
    | _STREAM
    | _fields(str, "content_asset_id content_pod_id video_player quality method")
    | _fields(list[str], "content_asset_ids content_pod_ids ad_asset_ids ad_pod_ids ad_types")
    | _fields(str | list[str], "ad_asset_id ad_pod_id ad_type")
    | _fields(Number, "sound seek_position")
    | _fields(bool, "full_screen ad_enabled livestream")
)
_CONTENT = (
    _PLAYHEAD
    | _STREAM
    | _fields(str, "asset_id pod_id title description season episode genre program publisher channel airdate")
    | _fields(list[str], "keywords")
    | _fields(bool, "full_episode livestream")
)
_AD = (
    _PLAYHEAD
    | _fields(str, "asset_id pod_id type title publisher load_type")
    | _fields(int, "pod_position pod_length quartile")
    | _fields(define("Content", _CONTENT), "content")
)

_VIDEO: dict[str, dict[str, Any]] = {
    **{
        f"Video Playback {moment}": _PLAYBACK
        for moment in (
            "Started",
            "Paused",
            "Interrupted",
            "Buffer Started",
            "Buffer Completed",
            "Seek Started",
            "Seek Completed",
            "Resumed",
            "Completed",
            "Exited",
        )
    },
    **{f"Video Content {moment}": _CONTENT for moment in ("Started", "Playing", "Completed")},
    **{f"Video Ad {moment}": _AD for moment in ("Started", "Playing", "Completed")},
    "Video Quality Updated": _STREAM | _fields(Number, "startupTime droppedFrames"),
}

_OTHERS: dict[str, dict[str, Any]] = {
    "Experiment Viewed": _fields(str, "experiment_id experiment_name variation_id variation_name"),
    "Utterance Heard": (
        _fields(str, "text intent locale") | _fields(Number, "confidence") | _fields(dict[str, Any], "slots")
    ),
}

TAXONOMY: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
    {name: define(name, fields) for name, fields in (_ECOMMERCE | _VIDEO | _OTHERS).items()}
)
"""The Struct of each canonical event's properties, by the event's name."""
