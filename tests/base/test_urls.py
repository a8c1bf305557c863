"""URLs choose backends; their three errors are tested word for word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import msgspec
import pytest

from headrace.base.errors import (
    MissingExtraError,
    SecretError,
    UnknownOptionError,
    UnknownSchemeError,
    UnsupportedError,
    UrlError,
)
from headrace.base.urls import Registry, Scheme, Url
from headrace.topics import SCHEMES


@dataclass(frozen=True)
class Abilities:
    flying: bool


class Bird:
    capabilities = Abilities(flying=True)

    @classmethod
    def from_url(cls, _):
        return cls()


class Fish(Bird):
    capabilities = Abilities(flying=False)


ANIMALS = Registry(
    noun="animal",
    group="headrace.test_animals",
    schemes={
        "bird": Scheme(f"{__name__}:Bird"),
        "fish": Scheme(f"{__name__}:Fish"),
        "unicorn": Scheme("missing_unicorn_backend:Unicorn", extra="unicorn"),
    },
)


@pytest.fixture(autouse=True)
def _unicorn(tmp_path, monkeypatch):
    # A backend's own file is there; the third-party package that it imports is not.
    (tmp_path / "missing_unicorn_backend.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module():
    module = type(sys)(__name__)
    module.Bird, module.Fish = Bird, Fish
    return module


def test_an_unknown_scheme_names_the_nearest_and_all_known():
    with pytest.raises(UnknownSchemeError) as caught:
        SCHEMES.open("kafak://broker:9092?key=s3cr3t")
    assert str(caught.value) == (
        "no topic backend for 'kafak://broker:9092?key=***'. Did you mean kafka://?  "
        "known: memory://, sqlite://, kafka://"
    )


def test_an_unknown_scheme_with_nothing_near_suggests_nothing():
    with pytest.raises(UnknownSchemeError) as caught:
        SCHEMES.open("x://")
    assert str(caught.value) == "no topic backend for 'x://'.  known: memory://, sqlite://, kafka://"


def test_a_missing_extra_gives_the_line_to_type():
    with pytest.raises(MissingExtraError) as caught:
        ANIMALS.open("unicorn://forest")
    assert str(caught.value) == (
        "animal 'unicorn://forest' needs the package 'surely_not_installed'.  pip install 'headrace[unicorn]'"
    )


def test_kafka_without_its_package_gives_the_line_to_type():
    code = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        "from headrace.base.errors import MissingExtraError\n"
        "from headrace.topics import open_topics\n"
        "try: open_topics('kafka://broker:9092')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "topic 'kafka://broker:9092' needs the package 'confluent_kafka'.  pip install 'headrace[kafka]'\n"
    )


def test_an_unsupported_operation_names_who_can():
    error = ANIMALS.unsupported(Url.parse("fish://sea"), "fly", "flying")
    assert isinstance(error, UnsupportedError)
    assert str(error) == "fish:// cannot fly; bird:// can"


def test_an_operation_that_nobody_can_says_so():
    waters = Registry("animal", "headrace.test_animals", {"fish": Scheme(f"{__name__}:Fish")})
    assert str(waters.unsupported(Url.parse("fish://sea"), "fly", "flying")) == (
        "fish:// cannot fly; no backend can yet"
    )


class Options(msgspec.Struct):
    linger_ms: int = 5
    compress: bool = False


def test_options_are_typed_and_an_unknown_one_names_the_nearest():
    assert Url.parse("fish://sea?linger_ms=7&compress=true").read_options(Options) == Options(7, compress=True)
    with pytest.raises(UnknownOptionError) as caught:
        Url.parse("fish://sea?compress=true&lingerms=s3cr3t").read_options(Options)
    # What stands behind a name that nobody knows may be a secret.
    assert str(caught.value) == (
        "'fish://sea?compress=true&lingerms=***' has no option 'lingerms'. Did you mean linger_ms?  "
        "known: linger_ms, compress"
    )


def test_an_option_of_the_wrong_type_says_where():
    with pytest.raises(UnknownOptionError, match=r"Expected `int`, got `str` - at `\$\.linger_ms`"):
        Url.parse("fish://sea?linger_ms=soon").read_options(Options)


def test_an_option_given_twice_is_refused():
    with pytest.raises(UrlError, match="'linger_ms' is given twice"):
        Url.parse("fish://sea?linger_ms=1&linger_ms=2")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///.headrace/topics", "{root}/.headrace/topics"),
        ("sqlite:///a%20b/c", "{root}/a b/c"),
        ("sqlite:////srv/topics", "/srv/topics"),
        ("SQLITE:////srv/topics", "/srv/topics"),
    ],
)
def test_three_slashes_are_relative_to_the_project_and_four_absolute(tmp_path, text, path):
    assert str(Url.parse(text, root=tmp_path).local_path()) == path.format(root=tmp_path)


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///", "sqlite://topics", "sqlite://topics/a"])
def test_a_url_that_names_no_file_says_how_to_write_one(text):
    with pytest.raises(UrlError) as caught:
        Url.parse(text).local_path()
    assert str(caught.value) == (
        f"{text!r} names no file. Write sqlite:///relative/path (three slashes) or sqlite:////absolute/path (four)"
    )


@pytest.mark.parametrize("text", ["", "topics", "/srv/topics", "sqlite:topics", "://x"])
def test_what_is_no_url_is_said(text):
    with pytest.raises(UrlError) as caught:
        Url.parse(text)
    assert str(caught.value) == f"{text!r} is not a URL. Write it as scheme://..., for example memory://"


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(SecretError) as caught:
        Url.parse("kafka://ann:hunter2@broker:9092")
    assert str(caught.value) == (
        "a password stands in the kafka:// URL. Put it into an environment variable "
        "and write kafka://ann:env:NAME@broker:9092"
    )


@pytest.mark.parametrize(
    "name", ["password", "sasl_password", "client_secret", "token", "Password", "sasl_pwd", "api_key"]
)
def test_a_secret_option_in_the_url_is_refused_and_not_repeated(name):
    with pytest.raises(SecretError) as caught:
        Url.parse(f"kafka://broker?{name}=hunter2")
    assert str(caught.value) == (
        f"the option {name!r} of the kafka:// URL is a secret. Put it into an environment variable "
        f"and write {name}=env:NAME"
    )


def test_a_secret_is_read_from_the_environment_and_masked_everywhere(monkeypatch):
    monkeypatch.setenv("PASSWORD_OF_ANN", "hunter2")
    monkeypatch.setenv("TOKEN_OF_ANN", "hunter3")
    url = Url.parse("kafka://ann:env:PASSWORD_OF_ANN@broker:9092?token=env:TOKEN_OF_ANN&linger_ms=5")
    assert (url.read_secret(), url.read_secret("token"), url.read_secret("absent")) == ("hunter2", "hunter3", "")
    for shown in (str(url), repr(url), f"{url}", repr([url]), repr({"url": url})):
        assert "hunter" not in shown
        assert "OF_ANN" not in shown
        assert "kafka://ann:***@broker:9092?token=***&linger_ms=5" in shown


def test_a_secret_that_is_not_set_names_its_variable(monkeypatch):
    monkeypatch.delenv("PASSWORD_OF_ANN", raising=False)
    with pytest.raises(SecretError) as caught:
        Url.parse("kafka://ann:env:PASSWORD_OF_ANN@broker").read_secret()
    assert str(caught.value) == (
        "'kafka://ann:***@broker' needs the environment variable PASSWORD_OF_ANN, which is not set"
    )


# Entry points, in a process of its own: they are installed packages.

BROUGHT = """
import sys
from headrace.base.errors import HeadraceError
from headrace.base.urls import Registry, Scheme, Url
registry = Registry("animal", "headrace.test_animals", {"fish": Scheme("animals:Fish")})
registry.open("fish://")
print("importlib.metadata" in sys.modules)
print(type(registry.open("dragon://")).__name__)
for url in ("phoenix://ash", "dragn://"):
    try: registry.open(url)
    except HeadraceError as error: print(type(error).__name__, error)
print(registry.unsupported(Url.parse("fish://"), "fly", "flying"))
"""


def test_entry_points_are_read_on_a_miss_and_only_then(tmp_path):
    (tmp_path / "animals.py").write_text(
        "class Able:\n    flying = True\n"
        "class Fish:\n    capabilities = type('No', (), {'flying': False})\n"
        "    @classmethod\n    def from_url(cls, url): return cls()\n"
        "class Dragon(Fish):\n    capabilities = Able\n"
    )
    (tmp_path / "ashes.py").write_text("import surely_not_installed\n")
    info = tmp_path / "animals-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: animals\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[headrace.test_animals]\ndragon = animals:Dragon\nphoenix = ashes:Phoenix\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", BROUGHT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.splitlines() == [
        "False",
        "Dragon",
        (
            "MissingExtraError animal 'phoenix://ash' needs the package 'surely_not_installed'.  "
            "pip install surely_not_installed"
        ),
        (
            "UnknownSchemeError no animal backend for 'dragn://'. Did you mean dragon://?  "
            "known: fish://, dragon://, phoenix://"
        ),
        "fish:// cannot fly; dragon:// can",
    ]


def test_a_url_survives_json_of_its_parts():
    url = Url.parse("kafka://ann@broker:9092,other:9092/a/b?x=1")
    assert (url.user, url.address, url.path, json.dumps(dict(url.options))) == (
        "ann",
        "broker:9092,other:9092",
        "/a/b",
        '{"x": "1"}',
    )
    assert str(url) == "kafka://ann@broker:9092,other:9092/a/b?x=1"


@pytest.mark.parametrize("text", ["kafka//ann:hunter2@broker", "kafka//broker?password=hunter2", "ann:hunter2@broker"])
def test_what_is_no_url_is_not_repeated_where_a_password_may_stand(text):
    with pytest.raises(UrlError, match=r"^'\w+(//\w+)?\.\.\.' is not a URL\.") as caught:
        Url.parse(text)
    assert "hunter2" not in str(caught.value)
