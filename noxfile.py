"""Sessions for every package under packages/. CONTRIBUTING.md says how to use them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.sessions = ["lint", "protocol", "typecheck", "tests", "build"]
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent.resolve()
FOLDERS = {path.parent.name: path.parent for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}
TORCHVISION_CPU = ROOT / "tools" / "torchvision-cpu"
# pip reads these itself: the second one where it no longer applies the first to build environments.
os.environ["PIP_CONSTRAINT"] = os.environ["PIP_BUILD_CONSTRAINT"] = str(ROOT / "constraints.txt")
os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

each_package = nox.parametrize("package", [nox.param(name, id=name) for name in FOLDERS])


def project(package: str) -> dict:
    return nox.project.load_toml(FOLDERS[package] / "pyproject.toml")["project"]


def command(package: str) -> str:
    return next(iter(project(package)["scripts"]))


def extras(package: str, *wanted: str) -> str:
    """Return the package's folder with those of the wanted extras that it declares."""
    names = [extra for extra in wanted if extra in project(package)["optional-dependencies"]]
    return f"{FOLDERS[package]}[{','.join(names)}]" if names else str(FOLDERS[package])


def requirements(package: str, *wanted: str) -> list[str]:
    """Return the dependencies of a package and its extras, without the package itself."""
    table, found, queue = project(package), [], [*wanted]
    found += table.get("dependencies", [])
    while queue:
        for line in table["optional-dependencies"][queue.pop()]:
            if line.replace("_", "-").startswith(f"{table['name']}["):
                queue += [name.strip() for name in line.split("[")[1].split("]")[0].split(",")]
            else:
                found.append(line)
    return found


def install(session: nox.Session, *arguments: str) -> None:
    """Install, and make torchvision importable beside a torch without CUDA libraries."""
    session.install(*arguments)
    if any(Path(session.virtualenv.location).glob("[Ll]ib/**/site-packages/torchvision")):
        session.install("--no-deps", str(TORCHVISION_CPU))


def pytest(session: nox.Session, package: str, *arguments: str, **env: str) -> None:
    folder = str(FOLDERS[package].relative_to(ROOT))
    success = [0, 5] if "-m" in arguments else [0]  # 5: the package has no test with that marker
    session.run("pytest", folder, *arguments, *session.posargs, env=env, success_codes=success)


def give_back(session: nox.Session) -> None:
    """In CI, remove the session's environment: a torch in each of thirty fills a small disk."""
    if os.environ.get("CI"):
        shutil.rmtree(session.virtualenv.location, ignore_errors=True)


@nox.session(allow_parallel=True)
def lint(session: nox.Session) -> None:
    """Check style and format of the whole tree."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(allow_parallel=True)
def protocol(session: nox.Session) -> None:
    """Check that every package keeps the protocol of CONTRIBUTING.md; test the build helpers."""
    session.install("jsonschema", "jinja2", "pytest", "packaging")
    session.run("pytest", "-q", "tools/tests")
    session.run("python", "tools/protocol.py", *(str(folder) for folder in FOLDERS.values()))
    session.run("python", "tools/results.py", "--check")


@nox.session(allow_parallel=True)
@each_package
def typecheck(session: nox.Session, package: str) -> None:
    """Run mypy over a package's sources."""
    session.install("mypy", *requirements(package, "test"))
    session.run("mypy", str(FOLDERS[package] / "src"))
    give_back(session)


@nox.session(allow_parallel=True)
@each_package
def tests(session: nox.Session, package: str) -> None:
    """Run a package's tests with coverage, in its own environment."""
    install(session, extras(package, "test"), "pytest", "pytest-cov")
    data = str(Path(session.create_tmp()) / "coverage")
    pytest(session, package, f"--cov={package}", "--cov-report=term", COVERAGE_FILE=data)
    give_back(session)


@nox.session(allow_parallel=True)
@each_package
def build(session: nox.Session, package: str) -> None:
    """Build sdist and wheel, and use the wheel in an environment of its own."""
    away = Path(session.create_tmp()).resolve()
    shutil.rmtree(away / "dist", ignore_errors=True)
    session.install("build", "packaging")
    session.run("python", "-m", "build", "--outdir", str(away / "dist"), str(FOLDERS[package]))
    (sdist,), (wheel,) = away.glob("dist/*.tar.gz"), away.glob("dist/*.whl")
    session.run("python", str(ROOT / "tools/check_wheel.py"), str(wheel), str(FOLDERS[package]))
    session.run("pip", "wheel", "-q", "--no-deps", "-w", str(away / "dist/again"), str(sdist))

    shutil.rmtree(away / "empty", ignore_errors=True)
    session.run("python", "-m", "venv", str(away / "empty"), silent=True)
    programs = away / "empty" / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    env = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    with session.chdir(away):
        session.run(python, "-m", "pip", "install", "-q", str(wheel), env=env, external=True)
        if any((away / "empty").glob("[Ll]ib/**/site-packages/torchvision")):
            session.run(
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                str(TORCHVISION_CPU),
                external=True,
            )
        session.run(python, "-m", "pip", "check", external=True)
        session.run(python, "-c", f"import {package}", env=env, external=True)
        for flag in ("--version", "--help"):
            session.run(str(programs / command(package)), flag, env=env, external=True, silent=True)
    shutil.rmtree(away / "empty")
    give_back(session)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demos (of the named packages) in one environment; write out/index.html."""
    wanted = session.posargs or list(FOLDERS)
    if unknown := set(wanted) - set(FOLDERS):
        session.error(
            f"no package named {', '.join(sorted(unknown))}; there is {', '.join(FOLDERS)}"
        )
    install(session, "jsonschema", "jinja2", *(extras(name, "demo") for name in FOLDERS))
    session.run("pip", "check")
    for name in wanted:
        out = ROOT / "out" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        start = time.monotonic()
        try:
            session.run(command(name), "demo", "--out", str(out))
        except nox.command.CommandFailed as failure:
            (out / "failed.txt").write_text(f"{failure}\n")
        session.log(f"{name}: {time.monotonic() - start:.0f} s")
    session.run("python", "tools/gallery.py", "out", *wanted)


@nox.session
@each_package
def bench(session: nox.Session, package: str) -> None:
    """Measure a package against its peers; write benchmarks/results/."""
    folder = FOLDERS[package] / "benchmarks"
    install(session, extras(package, "test", "bench"), "pytest", "jsonschema")
    scripts = [folder / f"{name}.py" for name in session.posargs] or sorted(
        folder.glob("bench_*.py")
    )
    if not session.posargs:
        pytest(session, package, "-m", "peer")
    for script in scripts:
        session.run("python", str(script), "--out", str(folder / "results"))
    session.run("python", "tools/results.py")


@nox.session
@each_package
def stress(session: nox.Session, package: str) -> None:
    """Run the long property, fuzz and kill tests of a package."""
    install(session, extras(package, "test"), "pytest")
    pytest(session, package, "-m", "stress")


@nox.session
@each_package
def sanitize(session: nox.Session, package: str) -> None:
    """Run the tests of the native parts under ASan and UBSan."""
    if not (FOLDERS[package] / "CMakeLists.txt").exists():
        session.skip(f"{package} has no native part")
    install(session, *requirements(package, "test"), "pytest")
    session.install("--no-deps", "-Ccmake.define.SANITIZE=ON", str(FOLDERS[package]))
    preload = [  # libstdc++ too: without it ASan stops at the first C++ exception
        session.run("gcc", f"-print-file-name={name}", external=True, silent=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    asan, ubsan = "detect_leaks=0", "halt_on_error=1"
    env = {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": asan, "UBSAN_OPTIONS": ubsan}
    pytest(session, package, "-m", "native", "-p", "no:cacheprovider", **env)


@nox.session(allow_parallel=True)
def tools(session: nox.Session) -> None:
    """Test tools/torchvision-cpu beside the pinned torch, torchvision, timm and transformers."""
    session.install("torch", "torchvision", "timm", "transformers", "pytest")
    session.install("--no-deps", str(TORCHVISION_CPU))
    session.run("pytest", str(TORCHVISION_CPU))
    give_back(session)


@nox.session
def results(session: nox.Session) -> None:
    """Fill the tables of the READMEs from the committed results."""
    session.install("jsonschema")
    session.run("python", "tools/results.py", *session.posargs)


@nox.session(allow_parallel=True)
def docs(session: nox.Session) -> None:
    """Build the site with warnings as errors; run its doctests and the READMEs' examples."""
    install(session, "-r", "docs/requirements.txt", *(extras(name, "demo") for name in FOLDERS))
    session.run("pytest", "-q", "--doctest-modules", "--pyargs", *FOLDERS, success_codes=[0, 5])
    session.run("python", "tools/readme_examples.py", *(str(f) for f in FOLDERS.values()))
    shutil.rmtree(ROOT / "docs" / "_build", ignore_errors=True)
    session.run(
        "sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"
    )


if __name__ == "__main__":
    sys.exit("run it through nox: pip install nox && nox --list")
