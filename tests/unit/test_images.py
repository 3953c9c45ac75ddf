"""Mirrors, versions and the record: what is decided before any image is built."""

from __future__ import annotations

import io
import re
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import docker
import pytest
from rich.console import Console

from engine.image_names import ImageRecordError, in_registry, stand_ins
from toolchain import image_record, images, operating_system
from toolchain.mirrors import apt_settings, package_sources
from toolchain.progress import SetupError, Steps
from toolchain.recipes import STAND_INS, UPGRADES, Recipe, recipe_for, recipe_hash

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = """\
Debian bookworm http://mirror.example/debian/
Debian bookworm-updates http://mirror.example/debian/
Debian bookworm-backports http://mirror.example/debian/
Debian bookworm-security https://user:word@mirror.example/debian-security/
Node Source nodistro https://node.example/
W: a warning of apt's
"""


def test_the_mirror_is_the_machines_own() -> None:
    """Packages come from this machine's own mirrors, in the image's suite, without backports."""
    assert package_sources(DEBIAN, "trixie") == [
        "deb http://mirror.example/debian/ trixie main",
        "deb http://mirror.example/debian/ trixie-updates main",
        "deb https://user:word@mirror.example/debian-security/ trixie-security main",
    ]


def test_a_suite_may_have_its_symbolic_name() -> None:
    """`stable-security` of the machine is `trixie-security` of the image."""
    targets = "Debian stable http://mirror.example/debian/\nDebian stable-security http://mirror.example/security/\n"
    assert package_sources(targets, "trixie") == [
        "deb http://mirror.example/debian/ trixie main",
        "deb http://mirror.example/security/ trixie-security main",
    ]


@pytest.mark.parametrize(
    "targets",
    ["", "Ubuntu noble http://mirror.example/ubuntu/\n", "Debian bookworm file:///srv/mirror/\n"],
    ids=["no apt", "Ubuntu", "a folder"],
)
def test_no_mirror_is_invented(targets: str) -> None:
    """If the machine names no Debian mirror that a build can reach, debootstrap uses its own."""
    assert package_sources(targets, "trixie") == []


def test_the_package_mirrors_are_inherited() -> None:
    """Settings of proxies and retries go into the build; those that name a file or program of this machine do not."""
    dump = """\
APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3128/";
Acquire::https::Verify-Peer "true";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::http::Proxy-Auto-Detect "/usr/bin/auto-detect";
Acquire::Retries "3";
Acquire::cdrom::mount "/media/cdrom/";
Acquire::https "";
"""
    assert apt_settings(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3128/";',
        'Acquire::https::Verify-Peer "true";',
        'Acquire::Retries "3";',
    ]


@pytest.mark.parametrize(
    ("part", "reference"),
    [
        ("litellm", "ghcr.io/berriai/litellm:main-v1.55.0"),
        ("litellm", "registry.example:5000/mirror/litellm:v1.55.0-stable"),
        ("postgres", "postgres:17"),
        ("postgres", "postgres:17-bookworm"),
        ("postgres", f"postgres:17@sha256:{'0' * 64}"),
        ("haproxy", "haproxy:3.0"),
        ("haproxy", "registry.example/library/haproxy:3.0-trixie"),
        ("valkey", "valkey/valkey:8.1"),
        ("valkey", "valkey/valkey:8.1-trixie"),
    ],
)
def test_a_stand_in_for_what_it_is(part: str, reference: str) -> None:
    """A stand-in replaces an image only if its name and tag say that it is the software and version of the recipe."""
    assert recipe_for(reference) == STAND_INS[part]


def test_a_stand_in_for_what_a_stack_is_upgraded_to() -> None:
    for recipe in UPGRADES:
        assert recipe_for(f"ghcr.io/berriai/{recipe.part}:main-v{recipe.version}-stable") == recipe


@pytest.mark.parametrize(
    "reference",
    [
        "ghcr.io/berriai/litellm:main-v1.55.01",
        "ghcr.io/berriai/litellm:main-v1.55.0.dev1",
        "ghcr.io/berriai/litellm:main-v11.55.0",
        "ghcr.io/berriai/litellm-database:main-v1.55.0",
        f"ghcr.io/berriai/litellm@sha256:{'0' * 64}",
        "postgres:16",
        "postgres:17.2",
        "pgvector/pgvector:pg17",
        "registry.example:17/postgres",
        "haproxy:3",
        "haproxy:3.0.5",
        "redis:8.1",
    ],
)
def test_no_stand_in_for_anything_else(reference: str) -> None:
    """Another version, a closer one than the recipe promises, other software, or a bare digest: no stand-in."""
    assert recipe_for(reference) is None


def test_a_tag_says_what_it_is() -> None:
    """A stand-in has a name that no registry can serve; its tag shows the version and the recipe."""
    for recipe in (*STAND_INS.values(), *UPGRADES):
        version = re.escape(recipe.version)
        assert re.fullmatch(
            rf"llm-infrastructure\.invalid/{recipe.part}-stand-in:{version}-[0-9a-f]{{12}}", recipe.tag
        )


def test_the_hash_is_over_the_recipe(tmp_path: Path) -> None:
    """A change of a file's content, name or mode makes another image; the umask of a checkout does not."""
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    script = recipe / "script"
    script.write_text("true\n")
    script.chmod(0o700)
    hashes = [recipe_hash(recipe)]
    script.chmod(0o755)
    assert recipe_hash(recipe) == hashes[0]
    script.chmod(0o644)
    hashes.append(recipe_hash(recipe))
    script.write_text("false\n")
    hashes.append(recipe_hash(recipe))
    script.rename(recipe / "other")
    hashes.append(recipe_hash(recipe))
    (recipe / "more").touch()
    hashes.append(recipe_hash(recipe))
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("recipe", [STAND_INS["litellm"], *UPGRADES], ids=str)
def test_pythons_packages_are_locked_without_an_index(recipe: Recipe) -> None:
    """Every package of the LiteLLM image has its hashes, and the file names no address to fetch it from."""
    lock = recipe.packages.read_text()
    packages = re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    assert len(packages) == len(re.findall(r"^[^\s#]", lock, re.MULTILINE))
    versions = dict(packages)
    assert versions["litellm"] == recipe.version
    assert "://" not in lock
    assert "--index" not in lock


def test_the_record_is_what_was_written(tmp_path: Path) -> None:
    """The program reads the pairs that the set-up wrote, and other pairs stay."""
    record = tmp_path / ".images.yaml"
    assert stand_ins(record) == {}
    image_record.write(record, {"postgres:17": "own/postgres:1", "haproxy:3.0": "haproxy:3.0"})
    assert stand_ins(record) == {"postgres:17": "own/postgres:1"}
    image_record.write(record, {"litellm:1": "own/litellm:1"})
    assert stand_ins(record) == {"postgres:17": "own/postgres:1", "litellm:1": "own/litellm:1"}
    assert record.read_text().startswith("# Images that were built on this machine")
    assert [path.name for path in tmp_path.iterdir()] == [".images.yaml"]


def test_an_image_that_can_be_had_again_needs_no_stand_in(tmp_path: Path) -> None:
    """When the image itself runs, its line goes."""
    record = tmp_path / ".images.yaml"
    image_record.write(record, {"postgres:17": "own/postgres:1"})
    image_record.write(record, {"postgres:17": "postgres:17"})
    assert stand_ins(record) == {}


@pytest.mark.parametrize(
    "content", ["- postgres:17\n", "postgres:17: 17\n", "postgres:17:\n", "postgres: {a: b}\n", "{", "\x00"]
)
def test_a_malformed_record_is_refused(tmp_path: Path, content: str) -> None:
    """Anything but pairs of names is refused, with the file and the way out."""
    record = tmp_path / ".images.yaml"
    record.write_text(content)
    with pytest.raises(ImageRecordError, match=r"(?s)\.images\.yaml is not a record of stand-in images.*Remove it"):
        stand_ins(record)


def test_an_emptied_record(tmp_path: Path) -> None:
    """A record whose lines were all removed says that nothing is replaced."""
    record = tmp_path / ".images.yaml"
    record.write_text(image_record.HEADER)
    assert stand_ins(record) == {}


def test_a_pull_that_fails_is_one_line(tmp_path: Path) -> None:
    """It has the engine's reason; an image that was pulled has none."""

    def get(name: str) -> None:
        raise docker.errors.NotFound(name)

    def pull(name: str, **_: object) -> list[dict[str, str]]:
        if name == "haproxy:9":
            return [{"error": "no such host"}]
        if name == "postgres:9":
            raise docker.errors.APIError("500 Server Error", explanation="no route to host")
        return []

    api = SimpleNamespace(pull=pull)
    engine = cast("docker.DockerClient", SimpleNamespace(api=api, images=SimpleNamespace(get=get)))
    wanted = {"haproxy": "haproxy:9", "litellm": "litellm:9", "postgres": "postgres:9"}
    steps = Steps(Console(file=io.StringIO(), soft_wrap=True))
    with pytest.raises(SetupError) as raised:
        images.ensure(steps, engine, wanted, stack="any", ask=None, record=tmp_path / "record")
    assert raised.value.tried == ("pull haproxy:9: no such host", "pull postgres:9: no route to host")
    assert "./pulumiw config set --stack any postgresImage" in raised.value.fix
    printed = cast("io.StringIO", steps.console.file).getvalue().splitlines()
    assert sorted(re.sub(r" [0-9.]+ s$", "", line) for line in printed if not line.startswith("…")) == [
        "✓ Pull litellm:9",
        "✗ Pull haproxy:9: no such host",
        "✗ Pull postgres:9: no route to host",
    ]


def test_one_build_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace belongs to one build, starts empty whatever a killed build left, and is removed afterwards."""
    monkeypatch.setattr(operating_system, "CACHE", tmp_path)
    monkeypatch.setattr(images, "CACHE", tmp_path)
    left = tmp_path / "images/base/root/etc"
    left.mkdir(parents=True)
    order: list[str] = []

    def second() -> None:
        with Steps().step("second") as step, images._workspace("base", step):
            order.append("second")

    with Steps().step("first") as step:
        with images._workspace("base", step) as folder:
            assert list(folder.iterdir()) == []
            other = threading.Thread(target=second)
            other.start()
            other.join(0.2)
            order.append("first")
        other.join()
    assert order == ["first", "second"]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("postgres:17", "postgres:17"),
        ("library/postgres:17", "library/postgres:17"),
        ("ghcr.io/berriai/litellm:main-v1.55.0", "berriai/litellm:main-v1.55.0"),
        ("localhost/haproxy:3.0", "haproxy:3.0"),
        ("mirror:5000/team/haproxy:3.0", "team/haproxy:3.0"),
        ("llm-infrastructure/haproxy-stand-in:3.0-0123", "llm-infrastructure/haproxy-stand-in:3.0-0123"),
        (f"mirror:5000/postgres@sha256:{'0' * 64}", f"postgres:sha256-{'0' * 64}"),
        (f"postgres:17@sha256:{'0' * 64}", f"postgres:sha256-{'0' * 64}"),
    ],
)
@pytest.mark.parametrize("registry", ["registry.example:5000", "registry.example/mirror"])
def test_the_name_of_an_image_in_your_own_registry(reference: str, name: str, registry: str) -> None:
    """Its own name without the original registry. An image that is pinned by digest has the digest in its tag."""
    assert in_registry(reference, registry) == f"{registry}/{name}"
