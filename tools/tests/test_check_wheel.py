import zipfile

import pytest
from check_wheel import content_faults, dependency_faults, imported_modules, main


def package(tmp_path, wheel_files, requires=("numpy>=2",)):
    """Write the sources of a package ``thing`` and a wheel that holds the given files."""
    source = tmp_path / "thing" / "src" / "thing"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("import numpy\n")
    (source / "part.py").write_text("def f():\n    from PIL import Image\n    return Image\n")
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in wheel_files:
            path = tmp_path / "thing" / "src" / file
            archive.writestr(file, path.read_text() if path.exists() else "")
        lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
        archive.writestr("thing-1.0.dist-info/METADATA", f"Name: thing\nVersion: 1.0\n{lines}\n")
    return str(wheel), str(tmp_path / "thing")


def test_complete_wheel_passes(tmp_path):
    files = ["thing/__init__.py", "thing/part.py"]
    requires = ["numpy>=2", 'pillow>=10; extra == "images"']
    assert main(*package(tmp_path, files, requires)) == 0


@pytest.mark.parametrize(
    ("files", "requires", "fault"),
    [
        (["thing/__init__.py"], ["numpy", "pillow"], "misses thing/part.py"),
        (["thing/__init__.py", "thing/part.py"], ["numpy"], "part.py imports PIL"),
        (["thing/__init__.py", "thing/part.py"], ["pillow"], "__init__.py imports numpy"),
        (
            ["thing/__init__.py", "thing/part.py", "tests/x.py"],
            ["numpy", "pillow"],
            "outside thing/",
        ),
        (["thing/__init__.py", "thing/part.py", "thing/k.cpp"], ["numpy", "pillow"], "k.cpp"),
    ],
)
def test_fault_is_named(tmp_path, capsys, files, requires, fault):
    assert main(*package(tmp_path, files, requires)) == 1
    assert fault in capsys.readouterr().err


def test_native_library_inside_the_package_is_allowed():
    assert (
        content_faults(["thing/_native.abi3.so", "thing-1.0.dist-info/RECORD"], set(), "thing")
        == []
    )


def test_relative_and_standard_imports_need_no_declaration():
    text = "import json\nfrom . import part\nfrom thing.part import f\n"
    assert imported_modules(text) == {"json", "thing"}
    assert dependency_faults({"thing/x.py": text}, set(), "thing") == []
