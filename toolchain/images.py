"""The images that the stack runs: present on the engine, pulled, or replaced by a stand-in that is built here.

A stand-in is built from Debian and PyPI packages, from a recipe in `images/`, on networks without an image registry.
Its tag is the project's own and contains a hash of the recipe. `.images.yaml` records which stand-in is used for
which image; the program reads that (`engine.image_names`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import docker
import requests

from engine.connection import is_present
from engine.system_path import environment, which
from toolchain import image_record, recipes
from toolchain.mirrors import apt_settings, index_targets, package_sources
from toolchain.operating_system import CACHE, can_install, exclusive, install
from toolchain.progress import LINES_SHOWN_ON_FAILURE, CommandError, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from toolchain.progress import Step, Steps

T = TypeVar("T")

CA_BUNDLES = (
    os.environ.get("SSL_CERT_FILE", ""),
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    requests.utils.DEFAULT_CA_BUNDLE_PATH,
)
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
REGISTRY_SECONDS = 30
"""How long a registry may take for its first answer. The engine waits longer if packets are dropped."""
TOO_MANY = re.compile(r"toomanyrequests|too many requests|\b429\b", re.IGNORECASE)
"""How an engine reports that a registry wants to be asked later: in these words, or with the status."""
WITHOUT_A_CLIENT = "For litellmDatabase: install npm, remove the image (docker rmi --force), and run `make up`."
ENGINE_FAILURES = (docker.errors.DockerException, requests.RequestException)


def ensure(  # noqa: PLR0913 -- the options are keyword-only
    steps: Steps,
    engine: docker.DockerClient,
    wanted: Mapping[str, str],
    *,
    stack: str,
    ask: Callable[[str], bool] | None,
    record: Path = image_record.RECORD,
) -> dict[str, str]:
    """Put each part's image on the engine; return what to run for each: the wanted image or its stand-in.

    `wanted` maps parts of `stack` to image references. `ask` gets a question before anything is built; without it,
    for example without a terminal, the answer is yes. Raises SetupError.
    """
    recorded = image_record.read(record)
    chosen = {}
    for part, reference in wanted.items():
        choices = (recorded.get(reference), reference)
        if image := next((each for each in choices if each and is_present(engine, each)), None):
            chosen[part] = image
            recipe = recipes.recipe_for(reference)
            if image != reference and recipe is not None and image != recipe.tag:
                note = "its recipe has changed since; to rebuild it, remove its line from"
                steps.console.print(f"{image} is used instead of {reference}: {note} {record.name}", markup=False)
    missing = {part: reference for part, reference in wanted.items() if part not in chosen}
    if missing:
        chosen |= _Supply(steps, engine, stack, ask).get(missing)
    try:
        image_record.write(record, {wanted[part]: image for part, image in chosen.items()})
    except OSError as error:
        raise SetupError(f"{record} cannot be written: {error}", fix=f"ls -ld {record.parent}") from error
    return {part: chosen[part] for part in wanted}


class _Supply:
    """Pulls images and builds stand-ins, side by side."""

    def __init__(
        self, steps: Steps, engine: docker.DockerClient, stack: str, ask: Callable[[str], bool] | None
    ) -> None:
        self._steps = steps
        self._engine = engine
        self._stack = stack
        self._ask = ask
        self._interrupted = threading.Event()

    def get(self, missing: Mapping[str, str]) -> dict[str, str]:
        """Pull each part's image, or build its stand-in; return what there is now for each part."""
        failures = self._pull(set(missing.values()))
        unavailable = {part: reference for part, reference in missing.items() if reference in failures}
        tried = [f"pull {reference}: {why}" for reference, why in failures.items()]
        if limited := [reference for reference, why in failures.items() if TOO_MANY.search(why)]:
            why = f"The registry of {', '.join(limited)} allows no more pulls for now"
            log_in = "wait, or log in (docker login), and run it again"
            raise SetupError(why, tried=tried, fix=f"{log_in}\n    or {_elsewhere(unavailable, self._stack)}")
        try:
            return {**missing, **self._stand_ins(unavailable)}
        except _NotBuiltError as error:
            raise SetupError(str(error), tried=tried, fix=_elsewhere(unavailable, self._stack)) from error

    def _pull(self, references: Iterable[str]) -> dict[str, str]:
        """Pull images; return the reason for each that could not be pulled."""

        def pull(reference: str) -> None:
            with self._steps.step(f"Pull {reference}") as step:
                try:
                    self._follow(step, answer(lambda: self._engine.api.pull(reference, stream=True, decode=True)))
                except (*ENGINE_FAILURES, TimeoutError) as error:
                    step.why = failures[reference] = str(getattr(error, "explanation", None) or error)
                    raise

        failures: dict[str, str] = {}
        with self._side_by_side() as pool:
            for pulled in [pool.submit(pull, each) for each in sorted(references)]:
                with suppress(*ENGINE_FAILURES, TimeoutError):
                    pulled.result()
        return dict(sorted(failures.items()))

    def _stand_ins(self, unavailable: Mapping[str, str]) -> dict[str, str]:
        """Build a stand-in for each image that cannot be pulled; return their tags by part."""
        found = {}
        for part, reference in unavailable.items():
            recipe = recipes.recipe_for(reference)
            if recipe is None:
                builds = (recipes.STAND_INS[part], *recipes.UPGRADES)
                can_be = " or ".join(str(each) for each in builds if each.part == part)
                raise _NotBuiltError(
                    f"{reference} is not on the engine and cannot be pulled, and no stand-in for it can be built: "
                    "only "
                    f"{can_be} can be built here, and only for an image whose name and tag say so"
                )
            found[part] = recipe
        to_build = [recipe for recipe in found.values() if not is_present(self._engine, recipe.tag)]
        if to_build:
            names = ", ".join(map(str, to_build))
            instead = "here instead, from packages of Debian, PyPI and npm"
            if self._ask is None:
                self._steps.console.print(f"Building {names} {instead}. It takes minutes.", markup=False)
            elif not self._ask(f"Build {names} {instead}? It takes minutes."):
                raise _NotBuiltError(f"{names}: the stand-in was declined")
            try:
                self._build(to_build)
            except (*ENGINE_FAILURES, CommandError, OSError) as error:
                raise _NotBuiltError(f"A stand-in could not be built: {error}") from error
        for part, reference in unavailable.items():
            self._steps.console.print(f"{found[part].tag} is used instead of {reference}", markup=False)
        return {part: recipe.tag for part, recipe in found.items()}

    def _build(self, wanted: Iterable[recipes.Recipe]) -> None:
        debians = {recipe.debian: recipe for recipe in wanted if not is_present(self._engine, recipe.base)}
        self._check_machine(
            needs_debootstrap=bool(debians), needs_npm=any(recipe.node_packages.exists() for recipe in wanted)
        )
        with self._side_by_side() as pool:
            bases = {debian: pool.submit(self._make_base, recipe) for debian, recipe in debians.items()}
            built = [pool.submit(self._build_one, recipe, bases.get(recipe.debian)) for recipe in wanted]
            for each in (*bases.values(), *built):
                each.result()

    def _check_machine(self, *, needs_debootstrap: bool, needs_npm: bool) -> None:
        """Refuse what cannot work before it takes minutes, and install debootstrap and npm."""
        names = {"x86_64": "amd64", "aarch64": "arm64"}
        here, there = names.get(platform.machine(), platform.machine()), self._engine.version()["Arch"]
        if here != there:
            raise _NotBuiltError(f"What is built on this machine runs on {here}, and the engine on {there}")
        if needs_debootstrap and os.geteuid() != 0:
            raise _NotBuiltError("Only root can build a stand-in")
        if needs_debootstrap and which("debootstrap") is None:
            if not can_install():
                raise _NotBuiltError("A stand-in is built with debootstrap, which this system does not have")
            install(self._steps, "debootstrap", "debian-archive-keyring")
        if needs_npm and which("npm") is None and can_install():
            with suppress(SetupError):  # only LiteLLM's database needs it
                install(self._steps, "npm")

    def _make_base(self, recipe: recipes.Recipe) -> None:
        """Make the Debian image on the engine from which a stand-in is built."""
        with (
            self._steps.step(f"Make a base of Debian {recipe.debian}") as step,
            _workspace(f"debian-{recipe.debian}", step) as folder,
        ):
            if is_present(self._engine, recipe.base):
                return
            overlay, archive = folder / "overlay", folder / "archive.tar"
            _copy(recipes.RECIPES / "base/root", overlay)
            sources = package_sources(index_targets(step), recipe.debian)
            if sources:
                _put(overlay / "etc/apt/sources.list", "\n".join(sources) + "\n")
            settings = apt_settings(step.run(["apt-config", "dump"])) if which("apt-config") else []
            _put(overlay / "etc/apt/apt.conf.d/machine", "\n".join(settings) + "\n")
            bundle = next(Path(path) for path in CA_BUNDLES if path and Path(path).is_file())
            _put(overlay / "etc/ssl/certs/ca-certificates.crt", bundle.read_text(encoding="utf-8"))

            # Its own mounts and processes: when this program ends, even by a signal, none of them are left.
            alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
            mirror = [source.split()[1] for source in sources if source.split()[2] == recipe.debian][:1]
            proxies = dict(re.findall(r'^Acquire::(https?)::Proxy "(\w+://.+)";', "\n".join(settings), re.MULTILINE))
            arguments = [recipe.debian, str(overlay), str(folder / "root"), str(archive), *mirror]
            step.run(
                [*alone, "--mount-proc", str(recipes.RECIPES / "base/build.sh"), *arguments],
                env={f"{scheme}_proxy": proxy for scheme, proxy in proxies.items()} | environment(),
            )
            step.note("import")
            repository, _, tag = recipe.base.partition(":")
            result = self._engine.api.import_image(str(archive), repository=repository, tag=tag)
            if not is_present(self._engine, recipe.base):
                raise docker.errors.DockerException(f"the base could not be imported: {result}")

    def _build_one(self, recipe: recipes.Recipe, base: Future[None] | None) -> None:
        """Build a stand-in, which gets its tag only once it is complete."""
        with (
            self._steps.step(f"Build {recipe}") as step,
            _workspace(recipe.part, step) as folder,
        ):
            context = folder / "context"
            _copy(recipes.RECIPES / recipe.part, context)
            if recipe.packages.exists():
                shutil.copy(recipe.packages, context)
                _download_wheels(step, recipe, context / "wheels")
            if recipe.node_packages.exists() and not _has_node_packages(step, context / recipe.node_packages.name):
                without = f"{recipe.tag} has no database client: npm did not provide its packages. {WITHOUT_A_CLIENT}"
                self._steps.console.print(without, markup=False)
            if base is not None:
                step.note("waiting for its base")
                base.result()
            if is_present(self._engine, recipe.tag):
                return
            build = self._engine.api.build(
                path=str(context),
                tag=recipe.tag,
                buildargs={"BASE": recipe.base, **{key: os.environ[key] for key in PROXIES if key in os.environ}},
                network_mode="host",  # the build reaches mirrors the same way as this machine
                nocache=True,
                rm=True,
                forcerm=True,
                decode=True,
            )
            try:
                self._follow(step, build)
            finally:
                # The stages before the last remain, untagged. The recipe's label distinguishes them from other
                # builds'.
                self._engine.images.prune({"dangling": True, "label": f"llm-infrastructure.build={recipe.part}"})

    def _follow(self, step: Step, events: Iterable[Mapping[str, str]]) -> None:
        """Show the engine's messages until it is done. Raises DockerException with its last lines."""
        lines: deque[str] = deque(maxlen=LINES_SHOWN_ON_FAILURE)
        error = None
        for event in events:
            if self._interrupted.is_set():
                raise docker.errors.DockerException("interrupted")
            lines += event.get("stream", "").splitlines()
            error = event.get("error", error)  # raised at the end, because unread output keeps the connection open
            step.note(" ".join(event[key] for key in ("stream", "id", "status", "progress") if key in event))
        if error:
            raise docker.errors.DockerException("\n".join([error, *lines]))

    @contextmanager
    def _side_by_side(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for work on the engine. An interrupt ends them at the engine's next message."""
        with ThreadPoolExecutor() as pool:
            try:
                yield pool
            except KeyboardInterrupt:
                self._interrupted.set()
                raise


class _NotBuiltError(Exception):
    """A stand-in was not built; the message says why."""


def answer(call: Callable[[], T]) -> T:
    """Call the engine, and give up if its registry does not answer for too long (the engine may go on)."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except ENGINE_FAILURES as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(REGISTRY_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"its registry did not answer for {REGISTRY_SECONDS} s") from error


def _download_wheels(step: Step, recipe: recipes.Recipe, folder: Path) -> None:
    """Fetch what the image's Python installs, with this machine's pip and its index, proxy and certificates."""
    machine = platform.machine()
    platforms = [f"manylinux{glibc}_{machine}" for glibc in ("2014", "_2_17", "_2_28", "_2_34", "_2_36")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    target = [
        f"--python-version={recipe.python}",
        "--implementation=cp",
        *(f"--platform={each}" for each in platforms),
    ]
    locked = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={recipe.packages}"]
    step.note("download of its Python packages")
    step.run([*pip, *target, *locked, f"--dest={folder}"])


def _has_node_packages(step: Step, folder: Path) -> bool:
    """Fetch what the lock in a folder names, with this machine's npm and its registry, proxy and certificates.

    Returns whether that worked.
    """
    step.note("download of its Node packages")
    try:
        step.run(["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"], cwd=folder)
    except (CommandError, OSError):
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        return False
    return True


def _elsewhere(unavailable: Mapping[str, str], stack: str) -> str:
    references = " ".join(sorted(set(unavailable.values())))
    settings = ", ".join(f"./pulumiw config set --stack {stack} {part}Image …" for part in unavailable)
    return (
        f"on a machine that has the images: docker save {references} | gzip >images.tar.gz\n"
        "    then on this one: docker load <images.tar.gz\n"
        f"    or name a registry that this network has: {settings}"
    )


@contextmanager
def _workspace(name: str, step: Step) -> Iterator[Path]:
    """An empty folder that one process at a time has to itself. What a killed process left in it is removed."""
    folder = CACHE / "images" / name
    with exclusive(f"images/{name}", step):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _copy(source: Path, target: Path) -> None:
    """Copy a recipe with the modes that an image needs, whatever this checkout's umask was."""
    for file in source.rglob("*"):
        if file.is_file():
            _put(target / file.relative_to(source), file.read_text(encoding="utf-8"), recipes.mode_of(file))


def _put(file: Path, content: str, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    file.chmod(mode)
