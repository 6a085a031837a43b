"""The audit of dependencies says why it is skipped."""

import os
import subprocess
import sys

from genval.runtime.paths import REPO_ROOT


def test_without_a_service_the_audit_is_skipped_with_the_reason():
    environment = {**os.environ, "PYTHON": sys.executable, "ADVISORY_SERVICE": "http://127.0.0.1:9/none"}
    done = subprocess.run([REPO_ROOT / ".ci/audit"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "audit skipped: http://127.0.0.1:9/none gives no advisories\n"
