"""A real Slurm on this machine: a controller and node daemons of Debian's packages, in a directory.

Nothing of the system is used or changed: own configuration, ports, key and spool directories; no
systemd, no accounting database, no cgroups. It runs as root in a container.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
PACKAGES = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
NODES = ("n1", "n2")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=6
KillWait=30
MessageTimeout=20
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={names} MaxTime=INFINITE State=UP PreemptMode=REQUEUE
"""


def missing() -> str:
    """Return why no Slurm can be started here, or ""."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"no {', '.join(lacking)}; install Slurm: {PACKAGES}"
    return "" if os.geteuid() == 0 else "a Slurm of one's own is started as root"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def until(what: str, happened: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(0.1)


class SlurmCluster:
    """One controller and two node daemons.

    Args:
        folder: Where everything goes; a short path, since it holds sockets.
        cpus: CPUs that each node says it has.
    """

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, host = folder, socket.gethostname().partition(".")[0]
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        text = _CONFIG.format(
            host=host, ports=ports, folder=folder, nodes=nodes, names=",".join(NODES)
        )
        for name in ("state", *NODES):
            (folder / name).mkdir(parents=True)
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.environment = {
            **os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")
        }  # fmt: skip
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start the daemons and wait until the nodes are idle."""
        places = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid",
                  "seed-file": "munge.seed", "log-file": "munged.log"}  # fmt: skip
        options = [f"--{name}={self.folder / place}" for name, place in places.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        until("munged listens", (self.folder / "munge.socket").exists)
        self._start_controller()
        for name in NODES:
            self.start_node(name)
        until(
            "the nodes are idle",
            lambda: (
                self.run("sinfo", "-h", "-N", "-t", "idle", "-p", "main").count("\n") == len(NODES)
            ),
        )

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        config = str(self.folder / "slurm.conf")
        self._start(name, "slurmd", "-D", "-N", name, "-f", config)

    def kill_node(self, name: str) -> None:
        """Kill the daemon of a node and what it runs, as where the machine dies."""
        daemon = self._daemons.pop(name)
        # The daemon first, so that it reports nothing; then the jobs, which it does not own.
        victims = self._job_processes(name)
        daemon.kill()
        daemon.wait()
        for process in victims:
            _kill(process)

    def kill_daemon(self, name: str) -> None:
        """Kill the daemon of a node alone; what it started goes on."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def _job_processes(self, node: str = "") -> list[psutil.Process]:
        """Return the job steps, of one node or all, and what they started."""
        found = []
        for process in psutil.process_iter():
            try:
                if "slurmstepd" in process.name() and self._is_ours(process):
                    started = process.children(recursive=True)
                    if not node or any(_node_of(item) == node for item in started):
                        found += [process, *started]
            except (psutil.Error, OSError):
                continue
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        # psutil stops at the gap that the title of the process leaves there.
        entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        return f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in entries

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the test, which stops them
            )

    def run(self, *command: str) -> str:
        """Run one of Slurm's programs and return its output.

        The controller of Debian 12 may crash where a node dies while a job is launched on it; as
        a service would be, it is started again.
        """
        for _ in range(5):
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return done.stdout
            if self._daemons["slurmctld"].poll() is not None:
                self._start_controller()
            elif "onnection" not in done.stderr and "socket" not in done.stderr:
                break
            time.sleep(2)
        log = (self.folder / "slurmctld.log").read_text()
        raise AssertionError((command, done.stderr, log[-2000:]))

    def _start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    def state(self, job: str) -> str:
        """Return the state of a job, its reason and its restarts."""
        fields = dict(
            item.split("=", 1)
            for item in self.run("scontrol", "-o", "show", "job", job).split()
            if "=" in item
        )
        return f"{fields['JobState']} {fields['Restarts']}"

    def stop(self) -> None:
        """Cancel what runs and stop the daemons, by process id."""
        if "slurmctld" in self._daemons:
            cancel = ["scancel", "--user", "root"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    cancel, env=self.environment, capture_output=True, check=False, timeout=10
                )
        for process in self._job_processes():
            _kill(process)
        for name in reversed(list(self._daemons)):
            self._daemons[name].send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._job_processes():  # begun meanwhile
            _kill(process)


def _node_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("SLURMD_NODENAME", "")
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


if __name__ == "__main__":  # to look at it by hand
    cluster = SlurmCluster(Path(sys.argv[1]))
    cluster.start()
    sys.stdout.write(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}\n")
    sys.stdout.flush()
    try:
        signal.pause()
    finally:
        cluster.stop()
