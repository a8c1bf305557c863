"""Backends are chosen by URL, and by nothing else: this is how a URL becomes a class."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from headrace.base.errors import (
    MissingExtraError,
    SecretError,
    UnknownOptionError,
    UnknownSchemeError,
    UnsupportedError,
    UrlError,
    did_you_mean,
)

_REFERENCE = "env:"
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "credential", "apikey", "api_key")

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


@dataclass(frozen=True)
class Url:
    """A parsed backend URL. Secrets are names of environment variables, never values.

    >>> Url.parse("kafka://ann:env:KAFKA_PASSWORD@broker:9092?linger_ms=5")
    Url('kafka://ann:***@broker:9092?linger_ms=5')
    """

    scheme: str
    address: str = ""
    path: str = ""
    user: str = ""
    secret: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path()

    @classmethod
    def parse(cls, text: str, *, root: Path | str = ".") -> Url:
        """Returns the parts of `text`; local paths will be resolved against `root`."""
        scheme, mark, rest = text.partition("://")
        if not mark or not scheme:
            # With a login or a query, what stands behind these marks may be a password.
            quoted = re.split("[:@?]", text)[0] + "..." if re.search("[@?]", text) else text
            raise UrlError(f"{quoted!r} is not a URL. Write it as scheme://..., for example memory://")
        rest, _, query = rest.partition("?")
        netloc, slash, path = rest.partition("/")
        login, at, address = netloc.rpartition("@")
        user, _, secret = login.partition(":")
        if secret and not secret.startswith(_REFERENCE):
            raise SecretError(
                f"a password stands in the {scheme}:// URL. Put it into an environment variable "
                f"and write {scheme}://{user}:env:NAME@{address}"
            )
        pairs = parse_qsl(query, keep_blank_values=True)
        options = dict(pairs)
        for name in options:
            if sum(other == name for other, _ in pairs) > 1:
                raise UrlError(f"the option {name!r} is given twice in the {scheme}:// URL")
        _refuse_open_secrets(scheme, options)
        return cls(
            scheme=scheme.lower(),
            address=address if at else netloc,
            path=unquote(slash + path),
            user=unquote(user),
            secret=secret,
            options=options,
            root=Path(root),
        )

    def local_path(self) -> Path:
        """Returns the file path: three slashes are relative to the project, four absolute."""
        if self.address or len(self.path) < 2:
            raise UrlError(
                f"{str(self)!r} names no file. Write {self.scheme}:///relative/path (three slashes) "
                f"or {self.scheme}:////absolute/path (four)"
            )
        return (self.root / self.path[1:]).absolute()

    def read_secret(self, name: str = "") -> str:
        """Returns the value of the secret in the login part, or of option `name`."""
        reference = self.options.get(name, "") if name else self.secret
        variable = reference.removeprefix(_REFERENCE)
        if not variable:
            return ""
        value = os.environ.get(variable)
        if value is None:
            raise SecretError(f"{str(self)!r} needs the environment variable {variable}, which is not set")
        return value

    def read_options(self, kind: type[OptionsT]) -> OptionsT:
        """Returns the options as `kind`, every one known and of its type."""
        known = kind.__struct_fields__
        for name in self.options:
            if name not in known:
                listed = ", ".join(known) if known else "none"
                raise UnknownOptionError(
                    f"{self.masked(known)!r} has no option {name!r}.{did_you_mean(name, known)}  known: {listed}"
                )
        try:
            return msgspec.convert(dict(self.options), kind, strict=False)
        except msgspec.ValidationError as error:
            raise UnknownOptionError(f"{str(self)!r}: {error}") from error

    def masked(self, known: Collection[str] = ()) -> str:
        """Returns the URL as text without the values of options that are not `known`: they may be secrets."""
        shown = {name: value if name in known else "***" for name, value in self.options.items()}
        return str(replace(self, options=shown))

    def __str__(self) -> str:
        login = f"{self.user}:***@" if self.secret else f"{self.user}@" if self.user else ""
        query = "&".join(
            f"{key}=***" if value.startswith(_REFERENCE) else f"{key}={value}" for key, value in self.options.items()
        )
        return f"{self.scheme}://{login}{self.address}{self.path}{'?' if query else ''}{query}"

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"


def _refuse_open_secrets(scheme: str, options: Mapping[str, str]) -> None:
    for name, value in options.items():
        if any(word in name.lower() for word in _SECRET_WORDS) and not value.startswith(_REFERENCE):
            raise SecretError(
                f"the option {name!r} of the {scheme}:// URL is a secret. Put it into an environment "
                f"variable and write {name}=env:NAME"
            )


@dataclass(frozen=True)
class Scheme:
    """Where a scheme's class lives, and the extra that brings its package."""

    target: str
    extra: str = ""


@dataclass(frozen=True)
class Registry:
    """The backends of one room: a static table, and entry points on a miss."""

    noun: str
    group: str
    schemes: Mapping[str, Scheme]

    def find(self, url: Url) -> Any:
        """Returns the backend class for `url`, imported now and not before."""
        if url.scheme in self.schemes:
            return self._load(url, self.schemes[url.scheme])
        outside = self._outside()
        if url.scheme in outside:
            return self._load(url, outside[url.scheme])
        known = [*self.schemes, *outside]
        raise UnknownSchemeError(
            f"no {self.noun} backend for {url.masked()!r}."
            f"{did_you_mean(url.scheme, known, suffix='://')}  known: {_listed(known)}"
        )

    def open(self, url: Url | str, *, root: Path | str = ".") -> Any:
        """Returns an open backend for `url`."""
        parsed = Url.parse(url, root=root) if isinstance(url, str) else url
        return self.find(parsed).from_url(parsed)

    def unsupported(self, url: Url, operation: str, capability: str) -> UnsupportedError:
        """Returns the error for an operation that the backend of `url` lacks."""
        able = []
        for name, scheme in {**self._outside(), **self.schemes}.items():
            try:
                found = self._load(Url(scheme=name), scheme)
            except MissingExtraError:
                continue
            if getattr(found.capabilities, capability):
                able.append(name)
        who = f"{_listed(able, ' and ')} can" if able else "no backend can yet"
        return UnsupportedError(f"{url.scheme}:// cannot {operation}; {who}")

    def _load(self, url: Url, scheme: Scheme) -> Any:
        module, _, name = scheme.target.partition(":")
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "headrace":
                raise
            remedy = f"pip install 'headrace[{scheme.extra}]'" if scheme.extra else f"pip install {error.name}"
            raise MissingExtraError(f"{self.noun} {str(url)!r} needs the package {error.name!r}.  {remedy}") from error

    def _outside(self) -> dict[str, Scheme]:
        metadata = import_module("importlib.metadata")
        return {point.name: Scheme(point.value) for point in metadata.entry_points(group=self.group)}


def _listed(schemes: list[str], separator: str = ", ") -> str:
    return separator.join(f"{scheme}://" for scheme in schemes)
