"""Processes of this suite that start in milliseconds: forked from a server that has imported what they would import.

`install_with_servers()` puts `WarmPopen` in the place of `subprocess.Popen`, in this process and in all that are forked.
It takes `python -m distill_lit…`, scripts, marked code, and the process that reads exports. They get their own pid,
environment, folder, streams, session and exit code, and can be killed like any other. What is started differently, with
other values of what is read on import, or inside `cold()`, starts as everywhere. Workers of pytest-xdist share servers.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# beginnings of variables that libraries or Python read on import, and those of them that are read or set later
READ_ON_IMPORT = ("HF_", "TRANSFORMERS_", "CUDA_", "PYTHON", "LC_", "LANG", "HOME", "XDG_", "MPL", "TMPDIR", "TORCH",
                  "TERM", "NO_COLOR", "FORCE_COLOR", "TZ", "PATH", "USER")  # fmt: skip
READ_LATER = {
    "TORCHINDUCTOR_CACHE_DIR",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_XET_HIGH_PERFORMANCE",
    "PYTHONIOENCODING",
    "PYTHONPATH",
}
SUITE_IMPORTS = (
    "distill_lit.cli.commands.run", "distill_lit.evaluation.prefix_tree_lm", "distill_lit.experiment.execution.run",
    "distill_lit.experiment.state.status", "distill_lit.experiment.execution.student", "distill_lit.report.figures.pareto",
    "distill_lit.report.render", "lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks",
    "matplotlib.backends.backend_agg", "omegaconf", "torch.utils.serialization", "torch.utils.tensorboard",
    "torchmetrics", "transformers.models.llama.modeling_llama", "wordfreq",
)  # fmt: skip
READER_IMPORTS = (
    "torch", "safetensors.torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip
IMPORTS = {"suite": SUITE_IMPORTS, "reader of exports": READER_IMPORTS}
SETTINGS = {"suite": {}, "reader of exports": {"CUDA_VISIBLE_DEVICES": ""}}
OFFLINE = ("huggingface_hub.constants", "datasets.config")  # whose HF_HUB_OFFLINE is the environment's
MEASURED = "distill_lit.profiling.inference"  # whose memory is its own
MAY_BE_WARM = "# may start warm\n"  # the beginning of code for `python -c` of which the start is not what is tested
AS_ANYONE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # root without root's right to any file
FOLDER = "WARM_PROCESSES"  # in the environment: where the servers listen
LIFELINE = "lifeline"  # a pipe there, which the first process holds open as long as the servers are needed
SABOTAGED = ("distill_lit.experiment.execution.run",)  # imported again where a `sitecustomize` on the path changes it
_cold_popen = subprocess.Popen
_started_with: dict[str, str] = {}
_servers: dict[str, subprocess.Popen] = {}
_owner = 0  # the process that starts servers
_is_cold = _has_bound_rights = False


class WarmPopen(_cold_popen):
    """`subprocess.Popen`, whose process comes from a server where it can."""

    _status: socket.socket | None = None

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, restore_signals: Any, gid: Any, gids: Any, uid: Any, umask: int,
        start_new_session: bool, process_group: int,
    ) -> None:  # fmt: skip
        server = _server_for(args, env)
        unusual = (executable, preexec_fn, gid, gids, uid) != (None,) * 5 or shell or umask != -1 or process_group != -1
        if server is None or unusual:
            super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, p2cread,
                p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask, start_new_session,
                process_group,
            )  # fmt: skip
            return
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        streams = [given if given != -1 else own for given, own in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        bound_rights = tuple(args[:2]) == AS_ANYONE
        request = {
            "arguments": [os.fspath(word) for word in args[2 if bound_rights else 0 :]],
            "has_bound_rights": bound_rights or _has_bound_rights,
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd or os.getcwd()),
            "descriptors": [0, 1, 2, *pass_fds],
            "new_session": start_new_session,
        }
        self._status = socket.socket(socket.AF_UNIX)
        self._status.connect(server)
        body = json.dumps(request).encode()
        socket.send_fds(self._status, [len(body).to_bytes(8, "big")], [*streams, *pass_fds])
        self._status.sendall(body)
        self.pid = int.from_bytes(self._status.recv(8), "big")
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _read_status(self, timeout: float | None) -> None:
        assert self._status is not None
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            with self._waitpid_lock:
                if self.returncode is None:
                    answer = self._status.recv(8)
                    if not answer:
                        raise RuntimeError("the server that knows how this process ended has ended itself")
                    self.returncode = int.from_bytes(answer, "big", signed=True)

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*arguments, **options)
        self._read_status(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self._status is None:
            return super()._wait(timeout)
        self._read_status(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode


def _server_for(args: Any, env: Any) -> str | None:
    """The address of the server that has such a process, or None where it must start by itself."""
    if _is_cold or not isinstance(args, (list, tuple)):
        return None
    args = args[2:] if tuple(args[:2]) == AS_ANYONE else args
    words = [os.fspath(word) for word in args]
    if len(words) < 2 or words[0] != sys.executable:
        return None
    is_reader = words[1:3] == ["-I", "-c"] and 'sys.modules["distill_lit"] = None' in words[3]
    is_module = words[1] == "-m" and words[2].split(".")[0] == "distill_lit" and words[2] != MEASURED
    if not (is_reader or is_module or words[1].endswith(".py") or (words[1] == "-c" and words[2].startswith(MAY_BE_WARM))):
        return None
    given = dict(os.environ if env is None else env)
    for kind in IMPORTS:
        if (kind == "reader of exports") == is_reader and not _differs(given, SETTINGS[kind]):
            return _address(kind)
    return None


def _differs(given: dict[str, str], settings: dict[str, str]) -> set[str]:
    """The variables that make a process another one on import than that of a server with these settings."""
    own = {key for values in SETTINGS.values() for key in values}
    expected = {key: value for key, value in _started_with.items() if key not in own} | settings
    differing = {key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key)}
    return {key for key in differing if key not in READ_LATER and key.startswith(READ_ON_IMPORT)}


def ensure(kind: str) -> None:
    """Starts a server, unless somebody did; one that forks workers needs the other too."""
    if _owner == os.getpid():
        for needed in (kind, "reader of exports"):
            with contextlib.suppress(FileExistsError):
                Path(os.environ[FOLDER], f"{needed}.started").touch(exist_ok=False)
                _servers[needed] = _start(needed, os.environ[FOLDER])


def _address(kind: str) -> str:
    """Where a server listens, once it does."""
    ensure(kind)
    path, end = Path(os.environ[FOLDER], kind), time.monotonic() + 300
    while not path.exists():
        server = _servers.get(kind)
        assert server is None or server.poll() is None, f"the server of {kind} processes has ended"
        assert time.monotonic() < end, f"the server of {kind} processes does not start"
        time.sleep(0.02)
    return str(path)


def _start(kind: str, folder: str) -> subprocess.Popen:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
    code += f"from helpers import warm_processes; warm_processes.serve({kind!r}, {folder!r})"
    environment = {**_started_with, **SETTINGS[kind], "OMP_NUM_THREADS": "1"}
    with open(Path(folder, LIFELINE), "rb", buffering=0) as lifeline:
        return _cold_popen([sys.executable, "-c", code], stdin=lifeline, env=environment)


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Inside, processes start as everywhere: where their start is what is tested."""
    global _is_cold
    before, _is_cold = _is_cold, True
    try:
        yield
    finally:
        _is_cold = before


def install() -> None:
    """Lets `subprocess` use the servers of the process that this one comes from."""
    _started_with.update(os.environ)
    subprocess.Popen = WarmPopen  # type: ignore[misc]


def install_with_servers() -> None:
    """Lets `subprocess` use servers of this process, or of the one that it is a worker of: they start when they are needed
    and end with it."""
    global _owner
    _owner = os.getpid()
    if "PYTEST_XDIST_WORKER" not in os.environ or FOLDER not in os.environ:
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="warm")
        os.mkfifo(Path(folder, LIFELINE))
        os.open(Path(folder, LIFELINE), os.O_RDWR)  # until this process ends
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    install()


def serve(kind: str, folder: str) -> None:
    """Imports, and forks a process for each request, until the lifeline on its standard input is gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/{kind}.starting")
    listener.listen(64)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for those who asked
    install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in IMPORTS[kind]:
            __import__(name)
        sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("llama")  # of all architectures
    gc.collect()
    gc.freeze()  # a collection in a fork would look at all of it, and copy its pages
    assert threading.active_count() == 1, threading.enumerate()
    os.rename(f"{folder}/{kind}.starting", f"{folder}/{kind}")
    waiting: dict[int, socket.socket] = {}
    read_signal, write_signal = os.pipe()
    os.set_blocking(write_signal, False)
    signal.set_wakeup_fd(write_signal)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([listener, 0, read_signal], [], [])[0]
        if read_signal in ready:
            os.read(read_signal, 4096)
            _report_ends(waiting)
        if 0 in ready:
            return
        if listener in ready:
            _fork(listener.accept()[0], waiting, (listener, read_signal, write_signal))


def _report_ends(waiting: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            connection = waiting.pop(ended[0])
            with contextlib.suppress(OSError):
                connection.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(8, "big", signed=True))
            connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """(what is asked for, or None where the one who asks is gone; the descriptors that came with it)."""
    descriptors: list[int] = []
    try:
        size, descriptors, *_ = socket.recv_fds(connection, 8, 64)
        body = b""
        while len(body) < int.from_bytes(size, "big") and (part := connection.recv(1 << 20)):
            body += part
        return json.loads(body), descriptors
    except (OSError, ValueError):
        return None, descriptors


def _fork(connection: socket.socket, waiting: dict[int, socket.socket], ours: tuple[Any, ...]) -> None:
    request, descriptors = _receive(connection)
    if request is not None and (pid := os.fork()):
        waiting[pid] = connection
        with contextlib.suppress(OSError):  # who asked may be gone by now
            connection.sendall(pid.to_bytes(8, "big"))
    elif request is not None:
        for other in (connection, *waiting.values(), ours[0]):
            other.close()
        for descriptor in ours[1:]:
            os.close(descriptor)
        _leave(_become(request, descriptors))
    for descriptor in descriptors:
        os.close(descriptor)


def _become(request: dict[str, Any], descriptors: list[int]) -> int:
    """This fork is the process that was asked for, from its first line to its exit code, which is returned."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _take_descriptors(descriptors, request["descriptors"])
        if request["new_session"]:
            os.setsid()
        if request["has_bound_rights"]:
            _bind_rights()
        os.chdir(request["folder"])
        path_before = os.environ.get("PYTHONPATH", "")
        os.environ.clear()
        os.environ.update(request["environment"])
        _open_streams()
        random.seed()
        _set_path(path_before, request["folder"])
        _set_hub()
        _run(request["arguments"][1:])
    except SystemExit as leave:
        if isinstance(leave.code, int) or leave.code is None:
            return leave.code or 0
        print(leave.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _take_descriptors(descriptors: list[int], wanted: list[int]) -> None:
    """Gives descriptors the numbers that they are to have: first out of each other's way, then there."""
    high = [os.dup2(given, 900 + n, inheritable=False) for n, given in enumerate(descriptors)]
    for given in descriptors:
        os.close(given)
    for given, number in zip(high, wanted, strict=True):
        os.dup2(given, number)
        os.close(given)


def _set_hub() -> None:
    """What was read on import of HF_HUB_OFFLINE and HF_ENDPOINT, as the environment of this process has it."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and "HF_ENDPOINT" in os.environ:
        constants.ENDPOINT = os.environ["HF_ENDPOINT"]  # type: ignore[attr-defined]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    for name in OFFLINE:
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = offline  # type: ignore[attr-defined]


def _bind_rights() -> None:
    """Gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, capabilities 1 and 2, here and in processes started later."""
    global _has_bound_rights
    _has_bound_rights = True
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for place in range(3):  # effective, permitted, inheritable
        sets[place] &= ~0b110
    assert libc.capset(header, sets) == 0, ctypes.get_errno()


def _open_streams() -> None:
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    options: dict[str, Any] = {"encoding": encoding or "utf-8", "closefd": False}
    sys.stdin = open(0, errors=errors or "strict", **options)  # noqa: SIM115
    line_buffered = os.isatty(1)
    sys.stdout = open(1, "w", errors=errors or "strict", buffering=1 if line_buffered else -1, **options)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, **options)  # noqa: SIM115


def _set_path(before: str, folder: str) -> None:
    """`sys.path` as PYTHONPATH now wants it, and a `sitecustomize` that is new on it."""
    old, new = before.split(os.pathsep), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    added = [place for place in new if place and place not in old]
    tests = str(Path(__file__).parents[1])
    sys.path[:] = [folder, *added, *(place for place in sys.path if place not in ("", tests, *added))]
    for place in added:
        if (script := Path(place) / "sitecustomize.py").is_file():
            for name in SABOTAGED:
                sys.modules.pop(name, None)
            runpy.run_path(str(script))


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it has been imported already
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0].endswith(".py"):
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
    else:
        code, *sys.argv = words[words.index("-c") + 1 :]
        sys.argv.insert(0, "-c")
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _leave(code: int) -> None:
    """As an interpreter ends: threads are waited for, what was registered is called, streams are written."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)
