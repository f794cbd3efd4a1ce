# Runs in a process of its own: becomes the container of a pod. Reads one JSON object from its first
# argument: root (a directory), mounts ([from, to, writable]), user, group, environment, command.
# Private mounts and process ids, the root directory read-only, no privilege, PID 1 is the command.

import ctypes
import json
import os
import signal
import sys

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
libc = ctypes.CDLL(None, use_errno=True)


def check(value, what):
    if value != 0:
        error = ctypes.get_errno()
        sys.exit(f"pod_entry: {what}: {os.strerror(error)}")


def mount(source, target, flags, kind=None):
    check(libc.mount(source.encode(), target.encode(), kind.encode() if kind else None,
                     ctypes.c_ulong(flags), None), f"mount {source} on {target}")


def enter(pod):
    root = pod["root"]
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount(root, root, MS_BIND)
    for source, target, writable in pod["mounts"]:
        where = root + target
        mount(source, where, MS_BIND | MS_REC)
        if not writable:
            mount("none", where, MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount("proc", root + "/proc", 0, "proc")
    mount("none", root, MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chroot(root)
    os.chdir("/")


def drop(pod):
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the last one that this kernel has
    os.setgroups([pod["group"]])
    os.setresgid(pod["group"], pod["group"], pod["group"])
    os.setresuid(pod["user"], pod["user"], pod["user"])
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main():
    pod = json.loads(sys.argv[1])
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWPID), "unshare")
    child = os.fork()
    if child == 0:
        enter(pod)
        drop(pod)
        os.execve(pod["command"][0], pod["command"], pod["environment"])
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


main()
