"""What the machine is and does: read from /proc, so on Linux only; elsewhere the figures are None."""

import os
import platform
import re

TICK = os.sysconf("SC_CLK_TCK")


def description(profile):
    model, memory = platform.processor() or platform.machine(), None
    cpuinfo = _read("/proc/cpuinfo") or ""
    if found := re.search(r"model name\s*:\s*(.*)", cpuinfo):
        model = found[1]
    if found := re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo") or ""):
        memory = round(int(found[1]) / 2**20, 1)
    return {
        "cores": os.cpu_count(), "cpu": model, "memory_gib": memory,
        "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(), "profile": profile,
    }


def load():
    return [round(each, 2) for each in os.getloadavg()]


def peak_resident_mib(pid):
    found = re.search(r"VmHWM:\s*(\d+) kB", _read(f"/proc/{pid}/status") or "")
    return round(int(found[1]) / 1024, 1) if found else None


def cpu_seconds(pid):
    """User and system time of all threads of a process."""
    stat = _read(f"/proc/{pid}/stat")
    if stat is None:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def busy_seconds():
    """CPU time that all processes of the machine have used."""
    stat = _read("/proc/stat")
    if stat is None:
        return None
    user, nice, system, _idle, _wait, irq, softirq = map(int, stat.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


def listener(port):
    """The process that listens on a port, if it may be seen from here."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (_read(table) or "").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in inodes for fd in os.listdir(f"/proc/{pid}/fd")):
                return int(pid)
        except OSError:
            continue
    return None


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None
