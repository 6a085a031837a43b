import subprocess
import sys
import time

from genval.runtime.paths import REPO_ROOT


def test_seconds_since_start_count_from_the_start_of_the_process() -> None:
    code = "import time; time.sleep(0.5); from genval.runtime.progress import seconds_since_start as s; print(s())"
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert 0.45 < float(done.stdout) < time.monotonic() - before + 0.05
