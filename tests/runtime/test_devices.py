"""What the machine offers."""

from genval.runtime import devices
from genval.runtime.files import write_bytes


def test_memory_that_is_left_in_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "Path", lambda place: tmp_path / place.lstrip("/"))
    assert devices.available_memory() == 0  # the system does not tell
    write_bytes(tmp_path / "proc/meminfo", b"MemTotal: 90 kB\nMemAvailable: 50 kB\n")
    assert devices.available_memory() == 50 * 1024
    group = {"max": b"max\n", "current": b"30000\n", "stat": b"anon 5000\nactive_file 6000\ninactive_file 14000\n"}
    for name, content in group.items():
        write_bytes(tmp_path / f"sys/fs/cgroup/memory.{name}", content)
    assert devices.available_memory() == 50 * 1024
    # Kept contents of files do not count.
    write_bytes(tmp_path / "sys/fs/cgroup/memory.max", b"40000\n")
    assert devices.available_memory() == 40000 - 10000
