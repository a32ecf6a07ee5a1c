"""Each case runs in an interpreter of its own: the hook acts once per process."""

import subprocess
import sys
import textwrap

import pytest


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_start_of_the_interpreter_imports_nothing_heavy():
    assert python(
        "import sys; print('torch' in sys.modules, 'torchvision_cpu' in sys.modules)"
    ) == ("False True")


def test_torchvision_transforms_and_models():
    shape = python("""
        import torch, torchvision
        from torchvision.transforms import v2
        model = torchvision.models.resnet18(weights=None).eval()
        print(tuple(model(v2.Resize(64)(torch.zeros(1, 3, 80, 80))).shape))
    """)
    assert shape == "(1, 1000)"


def test_timm_forward():
    shape = python("""
        import timm, torch
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
        print(tuple(model(torch.zeros(1, 3, 224, 224)).shape))
    """)
    assert shape == "(1, 1000)"


def test_transformers_detection_model():
    assert python("from transformers import DetrForObjectDetection as D; print(D.__name__)") == (
        "DetrForObjectDetection"
    )


def test_operator_without_implementation_says_so():
    message = python("""
        import torch, torchvision, torchvision_cpu
        if torchvision_cpu.library is None:
            print("native library loaded")
        else:
            try:
                torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
            except (RuntimeError, NotImplementedError) as error:
                print(type(error).__name__, str(error)[:200])
    """)
    assert message == "native library loaded" or "torchvision" in message


@pytest.mark.parametrize("loads", [True, False])
def test_declares_only_where_the_native_library_does_not_load(loads):
    """The stand-in defines the operators when it is loaded, as the real library does."""
    out = python(f"""
        import torch, torchvision_cpu, pathlib
        native = torch.library.Library("torchvision", "DEF")
        def load(path):
            if not {loads}:
                raise OSError("libcudart.so.13: cannot open shared object file")
            native.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            native.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.ops.load_library = load
        import torchvision_cpu
        spec = torchvision_cpu.PathFinder.find_spec("torchvision")
        found = torchvision_cpu.load_native(pathlib.Path(spec.submodule_search_locations[0]))
        if not found:
            torchvision_cpu.Finder.find_spec("torchvision")
        print(found, torchvision_cpu.library is None)
    """)
    assert out == ("True True" if loads else "False False")


def test_hook_registers_once_and_removes_itself():
    out = python("""
        import sys, torchvision_cpu
        torchvision_cpu.register()
        before = sys.meta_path.count(torchvision_cpu.Finder)
        import torchvision
        print(before, torchvision_cpu.Finder in sys.meta_path)
    """)
    assert out == "1 False"


def test_without_torchvision_the_ordinary_error_stands():
    out = python("""
        import sys
        sys.path[:] = [p for p in sys.path if "site-packages" not in p]
        try:
            import torchvision
        except ModuleNotFoundError as error:
            print(error)
    """)
    assert out == "No module named 'torchvision'"
