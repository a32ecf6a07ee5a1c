import subprocess
import sys


def test_enhancing_loads_no_heavy_library():
    code = (
        "import sys, numpy as np, noiser\n"
        "noiser.enhance(np.arange(300).astype(np.uint8).reshape(10, 10, 3) // 4)\n"
        "heavy = {'torch', 'scipy', 'cv2', 'matplotlib', 'onnx', 'skimage', 'av'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
